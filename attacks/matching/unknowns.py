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
        images: (E·N, C, H, W), pixels.
        labels: (E·N, K), rows on the simplex.
        position: between the weights before and after training, for the surrogate model; or None.
    """

    images: Tensor
    labels: Tensor
    position: Tensor | None


@dataclass(frozen=True)
class Unknowns:
    """The numbers of N images in E copies, logits of labels that aren't given, and a position.

    Args:
        examples: N.
        shape: (C, H, W).
        classes: K.
        has_labels: whether labels are looked for, too: softmax of K numbers each.
        has_position: whether a position is looked for, too.
        is_boxed: whether images stay in [0, 1] on the way; they do in the end.
        epochs: E, copies of all examples that are looked for: one for each epoch, one epoch's after
            another's.
    """

    examples: int
    shape: tuple[int, int, int]
    classes: int
    has_labels: bool = False
    has_position: bool = False
    is_boxed: bool = True
    epochs: int = 1

    @property
    def copies(self) -> int:
        """E·N."""
        return self.epochs * self.examples

    @property
    def pixels(self) -> int:
        """E·N·C·H·W."""
        return self.copies * math.prod(self.shape)

    @property
    def size(self) -> int:
        """Length of a row."""
        free = self.copies * self.classes if self.has_labels else 0
        return self.pixels + free + self.has_position

    def draw(self, starts: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Draw rows (R, size): pixels uniform in [0, 1], labels near uniform, the position 0.5."""
        rows = torch.rand(starts, self.size, generator=generator, dtype=torch.float64)
        rows[:, self.pixels :] -= 0.5
        if self.has_position:
            rows[:, -1] = 0.5
        return rows.to(dtype)

    def images(self, row: Tensor) -> Tensor:
        """Return the images (E·N, C, H, W) of a row (size,)."""
        return row[: self.pixels].reshape(self.copies, *self.shape)

    def copied(self, labels: Tensor) -> Tensor:
        """Return labels (E·N, K) of all copies of examples with labels (N, K)."""
        return labels.repeat(self.epochs, 1)

    def read(self, row: Tensor, labels: Tensor | None) -> Candidate:
        """Say what a row (size,) stands for, with labels (N, K) that are given, or None."""
        if self.has_labels:
            end = self.pixels + self.copies * self.classes
            labels = row[self.pixels : end].reshape(self.copies, self.classes).softmax(dim=1)
        else:
            assert labels is not None
            labels = self.copied(labels)
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
