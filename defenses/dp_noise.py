"""Clipping and Gaussian noise on a client's whole update.

The Gaussian mechanism of Dwork and Roth (*The Algorithmic Foundations of Differential Privacy*,
2014, section 3.5.3), applied by the client itself, as in McMahan et al., *Learning Differentially
Private Recurrent Language Models*, ICLR 2018, arXiv 1710.06963, but before the update is sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.facts import Fact, GaussianMechanism
from defenses.base import Defense, Gradients, Place, is_number
from defenses.privacy import LocalPlan, Privacy


def clip(update: Gradients, clipping_norm: float) -> dict[str, Tensor]:
    """Scale an update down to an L2 norm, over all its tensors together: `Δ·min(1, C/‖Δ‖)`.

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
class DPNoise(Defense):
    """Clip the weight difference, then add noise of standard deviation σ = multiplier · norm.

    Args:
        clipping_norm: C, the L2 bound on the weight difference, above 0.
        noise_multiplier: σ/C, at least 0; 0 clips only and gives no privacy guarantee.

    Raises:
        ValueError: a parameter is out of its range.
    """

    clipping_norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        if not (is_number(self.clipping_norm) and 0 < self.clipping_norm < math.inf):
            raise ValueError(
                f"clipping_norm must be a finite number above 0, found {self.clipping_norm!r}"
            )
        if not (is_number(self.noise_multiplier) and 0 <= self.noise_multiplier < math.inf):
            raise ValueError(
                "noise_multiplier must be a finite number of at least 0, "
                f"found {self.noise_multiplier!r}"
            )

    def on_update(self, update: Gradients, place: Place, generator: torch.Generator) -> Gradients:
        """Clip, then add the noise."""
        noise_std = self.noise_multiplier * self.clipping_norm
        return {
            name: part
            + noise_std * torch.randn(part.shape, generator=generator, dtype=part.dtype).to(part)
            for name, part in clip(update, self.clipping_norm).items()
        }

    def facts(self) -> tuple[Fact, ...]:
        """Tell the norm and the noise's standard deviation."""
        std = self.noise_multiplier * self.clipping_norm
        return (GaussianMechanism(self.clipping_norm, std),)

    def privacy(self, plan: LocalPlan) -> Privacy:
        """Return that any two updates of norm at most C differ by at most 2C."""
        return Privacy(
            sensitivity=2 * self.clipping_norm, noise=self.noise_multiplier * self.clipping_norm
        )
