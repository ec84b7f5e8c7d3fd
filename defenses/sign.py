"""Signs only: every entry of an update becomes the mean size of its tensor, with its own sign.

Bernstein, Wang, Azizzadenesheli and Anandkumar, *signSGD: Compressed Optimisation for Non-Convex
Problems*, ICML 2018, arXiv 1802.04434, algorithm 1; the size is that of Karimireddy et al., ICML
2019, arXiv 1901.09847, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.facts import Fact, SignsOnly
from defenses.base import Defense, Gradients, Place, WithState
from defenses.error_feedback import compress


def scaled_sign(part: Tensor) -> Tensor:
    """Return `sign(v) · ‖v‖₁/n` of a tensor with n entries; zeros stay zeros.

    Example:
        >>> scaled_sign(torch.tensor([1.0, -3.0])).tolist()
        [2.0, -2.0]
    """
    size = part.double().abs().mean() if part.numel() else part.double().sum()
    return (part.sign() * size).to(part)


@dataclass(frozen=True)
class Sign(Defense):
    """Send the signs of the update, and one size for each tensor.

    Args:
        error_feedback: whether what is lost is added to the client's next update.
    """

    error_feedback: bool = False

    @property
    def is_random(self) -> bool:
        """Nothing is drawn."""
        return False

    def on_update(
        self, update: Gradients, place: Place, generator: torch.Generator
    ) -> Gradients | WithState:
        """Leave the signs."""

        def compressor(whole: Gradients) -> dict[str, Tensor]:
            return {name: scaled_sign(part) for name, part in whole.items()}

        return compress(update, place, compressor, error_feedback=self.error_feedback)

    def facts(self) -> tuple[Fact, ...]:
        """Tell that signs are all there is."""
        return (SignsOnly(),)
