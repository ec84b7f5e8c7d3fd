"""Both originals of a pair that was mixed twice.

Ours. Two mixes of one pair, with labels that tell the shares m and m' of the pair's first class,

    x̃ = m x₁ + (1−m) x₂,      x̃' = m' x₁ + (1−m') x₂,

are two equations for two images. Which rows of a batch belong together isn't told: those of the
same two classes may, and a wrong pair leaves the pixels' range.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

RANGE_SLACK = 1e-3
"""How far pixels may leave [0, 1], per unit of the factor by which solving spreads errors."""
LEAST_DIFFERENCE = 1e-3
"""Difference of the shares from which two mixes differ."""
ONE_CLASS = 1e-4
"""Share of a class below which a label counts as that of one class alone."""


@dataclass(frozen=True, eq=False)
class Separated:
    """Two originals out of two mixes.

    Args:
        rows: the mixes' places in the batch.
        classes: the originals' classes.
        images: (2, C, H, W), in the order of the classes.
    """

    rows: tuple[int, int]
    classes: tuple[int, int]
    images: Tensor


def separate(images: Tensor, labels: Tensor) -> list[Separated]:
    """Solve the pairs of mixes in a batch for their originals.

    Args:
        images: (B, C, H, W) mixed pixels in [0, 1], as an image attack recovered them.
        labels: (B, K), as a label attack did; smoothing is taken off. Rows with NaN are left out.

    Returns:
        The pairs of which no row fits a third one. Of two examples of one class the label doesn't
        tell the shares: they are left out.

    Example:
        >>> mixes = torch.tensor([0.25, 0.75]).reshape(2, 1, 1, 1)
        >>> (found,) = separate(mixes, torch.tensor([[0.25, 0.75], [0.75, 0.25]]))
        >>> found.images.flatten().tolist()
        [1.0, 0.0]
    """
    shares = [_share(label) for label in labels.double()]
    solved = []
    for i, j in itertools.combinations(range(len(images)), 2):
        one, other = shares[i], shares[j]
        if one is None or other is None or one[0] != other[0]:
            continue
        pair = _solve(images[[i, j]].double(), one[1], other[1])
        if pair is not None:
            solved.append(Separated((i, j), one[0], pair))
    used = Counter(row for found in solved for row in found.rows)
    return [found for found in solved if all(used[row] == 1 for row in found.rows)]


def _share(label: Tensor) -> tuple[tuple[int, int], float] | None:
    """Return a label's two classes, in order, and the first one's share; None of one class."""
    if not bool(label.isfinite().all()):
        return None
    bare = label - label.min() if len(label) > 2 else label
    first, second = sorted(torch.topk(bare, 2).indices.tolist())
    share = float(bare[first] / (bare[first] + bare[second]))
    return ((first, second), share) if ONE_CLASS < share < 1 - ONE_CLASS else None


def _solve(mixes: Tensor, m: float, n: float) -> Tensor | None:
    """Return both originals (2, C, H, W), or None where they leave [0, 1]."""
    if abs(m - n) < LEAST_DIFFERENCE:
        return None
    inverse = torch.linalg.inv(torch.tensor([[m, 1 - m], [n, 1 - n]], dtype=torch.float64))
    found = torch.einsum("ij,j...->i...", inverse, mixes)
    slack = RANGE_SLACK * float(inverse.abs().sum(dim=1).max())
    if not bool(((found >= -slack) & (found <= 1 + slack)).all()):
        return None
    return found.clamp(0, 1)
