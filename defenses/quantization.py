"""QSGD: entries are rounded to a few levels, at random and right on average.

Alistarh, Grubic, Li, Tomioka and Vojnovic, *QSGD: Communication-Efficient SGD via Gradient
Quantization and Encoding*, NeurIPS 2017, arXiv 1610.02132, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.facts import Fact, Quantized
from defenses.base import Defense, Gradients, Place, WithState
from defenses.error_feedback import compress
from defenses.parameters import require_whole


def quantize(part: Tensor, levels: int, draws: Tensor) -> Tensor:
    """Round a tensor's entries to `‖v‖ · k/s`, k = 0 … s, up or down with the mean kept.

    Args:
        part: v, any shape.
        levels: s, at least 1.
        draws: of v's shape, uniform in [0, 1).

    Returns:
        Of v's shape and type; a zero tensor stays zero.

    Example:
        >>> quantize(torch.tensor([3.0, 4.0]), 5, torch.tensor([0.5, 0.5])).tolist()
        [3.0, 4.0]
    """
    norm = part.double().norm()
    if not norm > 0:
        return part.clone()
    place = part.double().abs() * (levels / norm)
    below = place.floor()
    rounded: Tensor = part.sign() * (below + (draws < place - below)) * (norm / levels)
    return rounded.to(part)


@dataclass(frozen=True)
class Quantization(Defense):
    """Round every tensor of the update to levels of its norm.

    Args:
        levels: s, at least 1: an entry is one of 2s + 1 values.
        error_feedback: whether what rounding changed is taken back in the client's next update.

    Raises:
        ValueError: levels isn't a whole number of at least 1.
    """

    levels: int = 16
    error_feedback: bool = False

    def __post_init__(self) -> None:
        require_whole("levels", self.levels, 1)

    def on_update(
        self, update: Gradients, place: Place, generator: torch.Generator
    ) -> Gradients | WithState:
        """Round it."""

        def compressor(whole: Gradients) -> dict[str, Tensor]:
            return {
                name: quantize(
                    part,
                    self.levels,
                    torch.rand(part.shape, generator=generator, dtype=torch.float64).to(
                        part.device
                    ),
                )
                for name, part in whole.items()
            }

        return compress(update, place, compressor, error_feedback=self.error_feedback)

    def facts(self) -> tuple[Fact, ...]:
        """Tell the levels."""
        return (Quantized(self.levels),)
