"""The first layer's inputs behind a gradient, and what is uncertain about them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a way down the network gives for each of B examples.

    Args:
        a: (B, n), the first layer's inputs; rows of NaN where there is none.
        noise: (B,), root mean square error that noise leaves in their entries.
        features: (B, D), what the network has to make of them; rows of NaN where unknown.
        scale_bar: (B,), relative error bars of their scales; NaN where the images don't tell.
        reasons: why an example isn't identifiable, None where it is.
    """

    a: Tensor
    noise: Tensor
    features: Tensor
    scale_bar: Tensor
    reasons: tuple[str | None, ...]
