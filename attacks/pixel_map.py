"""The way from pixels to the first linear layer, when it is affine entry by entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.network import Network, input_of
from attacks.types import NotApplicable

MESSAGE = "the first layer must be linear on the pixels, up to normalisation"


@dataclass(frozen=True, eq=False)
class PixelMap:
    """The affine, entry-by-entry map `a = slope · image + offset` before the first layer.

    Args:
        slope: (C·H·W,), never zero.
        offset: (C·H·W,).
        shape: (C, H, W).
    """

    slope: Tensor
    offset: Tensor
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, network: Network, first: str) -> PixelMap:
        """Find the map by probing, and test it on a random image.

        Raises:
            NotApplicable: what stands before the first linear layer isn't such a map.
        """
        shape = (1, *network.input_shape)
        draws = torch.Generator().manual_seed(0)
        image = torch.rand(shape, generator=draws, dtype=torch.float64)
        inputs = _inputs(network, first, torch.cat([0 * image, 0 * image + 1, image]))
        if inputs.shape[1] != image.numel():
            raise NotApplicable(MESSAGE)
        offset, slope = inputs[0], inputs[1] - inputs[0]
        matches = torch.allclose(inputs[2], slope * image.flatten() + offset, atol=1e-9)
        if not matches or not slope.all():
            raise NotApplicable(MESSAGE)
        return cls(slope, offset, network.input_shape)

    @property
    def worth(self) -> float:
        """Error in pixels of a unit error in a, root mean square."""
        return float((1 / self.slope).square().mean().sqrt())

    def pixels(self, a: Tensor) -> Tensor:
        """Return the images (N, C, H, W) whose first-layer inputs are a (N, C·H·W)."""
        return ((a - self.offset) / self.slope).reshape(-1, *self.shape)


def range_of(images: Tensor) -> tuple[float, float]:
    """Return the least and the largest value of images, at least 1 apart: that of black and white.

    Args:
        images: of any shape, at least one value.
    """
    low, high = float(images.min()), float(images.max())
    missing = max(1 - (high - low), 0.0) / 2
    return low - missing, high + missing


class _Reached(Exception):
    """Ends a forward pass at the layer whose input was wanted."""


def _inputs(network: Network, first: str, images: Tensor) -> Tensor:
    """Return a linear layer's inputs, in float64, without running it: it may be large.

    Raises:
        NotApplicable: it doesn't take one flat row for each image.
    """
    caught: list[Tensor] = []

    def catch(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        caught.append(input_of(inputs, named))
        raise _Reached

    handle = network.linear[first].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        network.run(images, network.double(but=tuple(network.executed)))
    except _Reached:
        pass
    finally:
        handle.remove()
    if caught[0].ndim != 2:
        raise NotApplicable(
            f"the first linear layer, {first!r}, takes several rows for each image (of shape "
            f"{tuple(caught[0].shape[1:])}), so its gradient is a sum over these"
        )
    return caught[0]
