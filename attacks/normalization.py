"""What a data loader does to pixels before the network sees them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """`input = (pixel − mean) / std`, channel by channel, for pixels in [0, 1].

    Args:
        mean: one number, or one for each channel.
        std: likewise, above 0.

    Raises:
        ValueError: a value isn't finite, a std isn't above 0, or the lengths differ.

    Example:
        >>> Normalization(0.1307, 0.3081).mean
        (0.1307,)
        >>> Normalization.of_range(-1, 1)
        Normalization(mean=(0.5,), std=(0.5,))
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self, mean: float | Sequence[float] | Tensor, std: float | Sequence[float] | Tensor
    ) -> None:
        object.__setattr__(self, "mean", _numbers("mean", mean))
        object.__setattr__(self, "std", _numbers("std", std))
        if len(self.mean) != len(self.std) or not min(self.std) > 0:
            raise ValueError(
                f"mean and std must be equally long and std above 0, found {self.mean} and "
                f"{self.std}"
            )

    @classmethod
    def of_range(cls, low: float, high: float) -> Normalization:
        """Return what takes pixels in [0, 1] to inputs in [low, high], as 0 to 255 or -1 to 1.

        Raises:
            ValueError: high isn't above low, or one isn't finite.
        """
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"a pixel range must go up, found {low} to {high}")
        return cls(0.0 if low == 0 else -low / (high - low), 1 / (high - low))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the network's inputs for pixels (..., C, H, W)."""
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.mean, self.std))
        inputs = (pixels.double() - mean[:, None, None]) / std[:, None, None]
        return inputs.to(pixels.dtype)


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    try:
        listed = values.tolist() if hasattr(values, "tolist") else values
        numbers = tuple(float(v) for v in (listed if isinstance(listed, Sequence) else [listed]))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be a number, or one for each channel, found {values!r}"
        ) from error
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must hold finite numbers, found {values!r}")
    return numbers
