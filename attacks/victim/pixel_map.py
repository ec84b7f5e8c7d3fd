"""The way from pixels to the first layer, when it is affine entry by entry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.types import NotApplicable
from attacks.victim.network import Network

STRAYS = "its pixels leave [0, 1]: the client's loader normalises otherwise than was told"


@dataclass(frozen=True, eq=False)
class PixelMap:
    """The affine, entry-by-entry map `a = slope · image + offset` before the first layer.

    Args:
        slope: (C, H, W), never zero.
        offset: (C, H, W).
    """

    slope: Tensor
    offset: Tensor

    @classmethod
    def of(cls, network: Network, first: str) -> PixelMap:
        """Find the map before a layer by probing, and test it on a random image.

        Raises:
            NotApplicable: what stands before it isn't such a map.
        """
        draws = torch.Generator().manual_seed(0)
        image = torch.rand(1, *network.input_shape, generator=draws, dtype=torch.float64)
        images = torch.cat([0 * image, 0 * image + 1, image])
        inputs = network.input_before(first, images)
        if first in network.linear and inputs.ndim != 2:
            raise NotApplicable(
                f"the first linear layer, {first!r}, takes several rows for each image (of shape "
                f"{tuple(inputs.shape[1:])}), so its gradient is a sum over these"
            )
        if inputs.numel() == images.numel():
            offset, white, a = inputs.reshape(images.shape)
            slope = white - offset
            if slope.all() and torch.allclose(a, slope * image[0] + offset, atol=1e-9):
                return cls(slope, offset)
        raise NotApplicable(
            f"the first layer must be linear on the pixels, up to normalisation; before {first!r} "
            "stands something else"
        )

    @property
    def worth(self) -> float:
        """Error in pixels of a unit error in a, root mean square."""
        return float((1 / self.slope).square().mean().sqrt())

    def inputs(self, images: Tensor) -> Tensor:
        """Return the first layer's inputs (N, C, H, W) on images (N, C, H, W)."""
        return self.slope * images + self.offset

    def pixels(self, a: Tensor) -> Tensor:
        """Return the images (N, C, H, W) whose first-layer inputs are a (N, C·H·W)."""
        return (a.reshape(-1, *self.slope.shape) - self.offset) / self.slope

    def largest_factors(self, a: Tensor, slack: Tensor) -> Tensor:
        """Return the factors (N,) on inputs (N, C·H·W) up to which their pixels stay in [0, 1].

        Args:
            a: of any size.
            slack: (N,), by which each of a's entries may be off.
        """
        black = -self.offset / self.slope  # the image at a factor of 0
        growth = a.reshape(-1, *self.slope.shape) / self.slope
        sure = (growth.abs() - slack[:, None, None, None] / self.slope.abs()).clamp(min=0)
        room = torch.where(growth > 0, 1 - black, black).clamp(min=0)
        return torch.where(sure > 0, room / sure, torch.inf).flatten(1).amin(dim=1)


def range_of(images: Tensor) -> tuple[float, float]:
    """Return the least and the largest value of images, at least 1 apart: that of black and white.

    Args:
        images: of any shape, at least one value.
    """
    low, high = float(images.min()), float(images.max())
    missing = max(1 - (high - low), 0.0) / 2
    return low - missing, high + missing
