"""The range of images' pixels: [0, 1], or what they show where nobody tells how inputs are made."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.numerics.rms import row_rms
from attacks.victim.pixel_map import range_of


def in_range(
    images: Tensor, slack: Tensor, *, is_told: bool
) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """Return images in their range, which of them stray from it, and the range.

    Args:
        images: (N, C, H, W).
        slack: (N,), root mean square by which pixels may leave [0, 1].
        is_told: whether it is told how the client's loader normalises.
    """
    low, high = 0.0, 1.0
    strays = row_rms(images - images.clamp(0, 1)) > slack
    if not is_told and strays.any() and images.isfinite().all():
        low, high = range_of(images)
        strays = torch.zeros_like(strays)
    return images.clamp(low, high), strays, (low, high)
