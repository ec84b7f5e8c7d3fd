"""Clipping by the norm, of a gradient or of a whole update.

Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013,
arXiv 1211.5063, section 3.2. Nothing is hidden by it but the size of the gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from attacks.facts import ClippedGradient, Fact
from defenses.base import ClientStep, Defense, Gradients
from defenses.parameters import require_number


def clip(update: Gradients, clipping_norm: float) -> dict[str, torch.Tensor]:
    """Scale tensors down to an L2 norm, over all of them together: `Δ·min(1, C/‖Δ‖)`.

    Args:
        update: parameter name -> tensor.
        clipping_norm: C, above 0; infinity changes nothing.

    Returns:
        Tensors of the same names, shapes and types; a zero update stays zero.

    Example:
        >>> clip({"w": torch.tensor([3.0, 4.0])}, 1.0)["w"].norm().item()
        1.0
    """
    norm = math.sqrt(sum(float(part.double().square().sum()) for part in update.values()))
    factor = min(1.0, clipping_norm / norm) if norm > 0 else 1.0
    return {name: part * factor for name, part in update.items()}


@dataclass(frozen=True)
class GradientClipping(Defense):
    """Clip the gradient of each step's mean loss before the step is taken.

    Args:
        clipping_norm: C, the L2 bound on the gradient, above 0.

    Raises:
        ValueError: it isn't a finite number above 0.
    """

    clipping_norm: float

    def __post_init__(self) -> None:
        require_number("clipping_norm", self.clipping_norm, "above 0", lambda c: c > 0)

    @property
    def clips(self) -> Literal["gradient"]:
        """Each step's gradient."""
        return "gradient"

    @property
    def is_random(self) -> bool:
        """Nothing is drawn."""
        return False

    def on_gradient(
        self, step: ClientStep, gradients: Gradients, generator: torch.Generator
    ) -> Gradients:
        """Clip it."""
        return clip(gradients, self.clipping_norm)

    def facts(self) -> tuple[Fact, ...]:
        """Tell the norm."""
        return (ClippedGradient(self.clipping_norm),)
