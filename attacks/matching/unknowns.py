"""What is looked for, as one row of numbers: images, labels that aren't known, a mixing point."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Candidate:
    """What a row of numbers stands for.

    Args:
        images: (N, C, H, W), pixels.
        labels: (N, K), rows on the simplex.
        position: between the weights before and after training, for the surrogate model; or None.
    """

    images: Tensor
    labels: Tensor
    position: Tensor | None


@dataclass(frozen=True)
class Unknowns:
    """The numbers of N images, of the logits of labels that aren't given, and of a position.

    Args:
        examples: N.
        shape: (C, H, W).
        classes: K.
        has_labels: whether labels are looked for, too: softmax of K numbers each.
        has_position: whether a position is looked for, too.
        is_boxed: whether images stay in [0, 1] on the way; they do in the end.
    """

    examples: int
    shape: tuple[int, int, int]
    classes: int
    has_labels: bool = False
    has_position: bool = False
    is_boxed: bool = True

    @property
    def pixels(self) -> int:
        """N·C·H·W."""
        return self.examples * math.prod(self.shape)

    @property
    def size(self) -> int:
        """Length of a row."""
        free = self.examples * self.classes if self.has_labels else 0
        return self.pixels + free + self.has_position

    def draw(self, starts: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Draw rows (R, size): pixels uniform in [0, 1], labels near uniform, the position 0.5."""
        rows = torch.rand(starts, self.size, generator=generator, dtype=torch.float64)
        rows[:, self.pixels :] -= 0.5
        if self.has_position:
            rows[:, -1] = 0.5
        return rows.to(dtype)

    def images(self, row: Tensor) -> Tensor:
        """Return the images (N, C, H, W) of a row (size,)."""
        return row[: self.pixels].reshape(self.examples, *self.shape)

    def read(self, row: Tensor, labels: Tensor | None) -> Candidate:
        """Say what a row (size,) stands for, with labels (N, K) that are given, or None."""
        if self.has_labels:
            end = self.pixels + self.examples * self.classes
            labels = row[self.pixels : end].reshape(self.examples, self.classes).softmax(dim=1)
        assert labels is not None
        return Candidate(self.images(row), labels, row[-1] if self.has_position else None)

    def project(self, rows: Tensor) -> Tensor:
        """Return the nearest rows (R, size) that may be."""
        return self.settle(rows) if self.is_boxed else rows

    def settle(self, rows: Tensor) -> Tensor:
        """Return rows (R, size) with pixels, and the position, in [0, 1]."""
        parts = [rows[:, : self.pixels].clamp(0, 1), rows[:, self.pixels :]]
        if self.has_position:
            parts = [*parts[:1], parts[1][:, :-1], parts[1][:, -1:].clamp(0, 1)]
        return torch.cat(parts, dim=1)
