"""Label smoothing: every label is mixed with the uniform one.

Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, *Rethinking the Inception Architecture for Computer
Vision*, CVPR 2016, arXiv 1512.00567, section 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attacks import facts as fact
from defenses.base import ClientStep, Defense, is_number, replace_batch


def smooth_labels(labels: Tensor, smoothing: Tensor | float) -> Tensor:
    """Mix labels with the uniform label: `(1−ε)·y + ε/K`, PyTorch's convention.

    Args:
        labels: (B, K), rows on the simplex.
        smoothing: ε in [0, 1], one number or (B, 1); 0 changes nothing, 1 leaves the uniform label.

    Returns:
        (B, K), rows on the simplex.

    Example:
        >>> smooth_labels(torch.eye(4)[:1], 0.2).tolist()
        [[0.8500000238418579, 0.05000000074505806, 0.05000000074505806, 0.05000000074505806]]
    """
    return (1 - smoothing) * labels + smoothing / labels.shape[1]


@dataclass(frozen=True)
class LabelSmoothing(Defense):
    """Smooth every label, by a fixed ε or by one drawn for each example.

    Args:
        smoothing: ε in [0, 1], or the ends (low, high) of the interval that it is drawn from.

    Raises:
        ValueError: ε is outside [0, 1], or the interval is empty.
    """

    smoothing: float | Sequence[float] = 0.1

    def __post_init__(self) -> None:
        found: Any = self.smoothing
        ends = [found, found] if is_number(found) else found
        has_two = isinstance(ends, (list, tuple)) and len(ends) == 2 and all(map(is_number, ends))
        if not (has_two and 0 <= ends[0] <= ends[1] <= 1):
            raise ValueError(
                f"smoothing must be a number in [0, 1] or two of them in order, found {found!r}"
            )
        if isinstance(found, list):
            object.__setattr__(self, "smoothing", tuple(found))  # frozen means hashable, too

    @property
    def is_random(self) -> bool:
        """Whether ε is drawn."""
        return len({*self._interval()}) > 1

    def on_batch(self, step: ClientStep, generator: torch.Generator) -> ClientStep:
        """Smooth the labels."""
        low, high = self._interval()
        draws = torch.rand(len(step.labels), 1, generator=generator, dtype=torch.float64)
        smoothing = (low + (high - low) * draws).to(step.labels)
        return replace_batch(step, step.images, smooth_labels(step.labels, smoothing))

    def facts(self) -> tuple[fact.Fact, ...]:
        """Tell that labels are smoothed, and ε where it is fixed."""
        low, high = self._interval()
        return (fact.LabelSmoothing(low if low == high else None),)

    def _interval(self) -> tuple[float, float]:
        if isinstance(self.smoothing, Sequence):
            low, high = self.smoothing
            return float(low), float(high)
        return float(self.smoothing), float(self.smoothing)
