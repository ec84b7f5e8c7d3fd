"""What is left of a batch's gradient when the examples found are peeled off.

With `δ_b = (p_b − y_b)` of the examples found so far, `N` an orthonormal basis of the complement of
the `Uᵀ δ_b / r` in the B dimensions of the column space,

    Nᵀ S V = Nᵀ Uᵀ G_w

has rows spanned by the features that are *not* found: a space of `b = B − found` dimensions, whose
cone has the same extreme rays, less those found, and fewer accidental ones. Rays that are found
without a label can't be peeled off; objectives are deflated by them instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.batch.subspace import Subspace
from attacks.numerics.interior_point import Slice
from attacks.victim.gradients import Array

SLACK = 0.02
"""By how much a program's x may be negative, relative to its mean entry: noise, and the errors of
what is peeled off, mustn't close the cone. Sharpening makes up for it."""
SMALLEST_COLUMN = 0.1
"""Floor of a column's norm, in root mean squares: a unit hardly alive mustn't steer a program."""


@dataclass(frozen=True, eq=False)
class Rest:
    """The features that aren't found yet, as a space of b dimensions.

    Args:
        frame: (b, B), orthonormal rows: `q = frameᵀ q'`.
        right: `frame · V`, (b, D), orthonormal rows.
        rows: (K, b), the rows of G_w without what is peeled off, in these coordinates.
    """

    frame: Array
    right: Array
    rows: Array

    @property
    def size(self) -> int:
        """Number of dimensions, b."""
        return len(self.frame)

    def weights(self, columns: Array) -> Array:
        """Return the weights of the slice, `ν^−1.5` for the norms ν of the features' own columns.

        Args:
            columns: c, (D,), what whitening divided the features by.
        """
        norms = columns * np.linalg.norm(self.right, axis=0)
        norms = np.maximum(norms, SMALLEST_COLUMN * np.sqrt(np.mean(norms**2)))
        weights = columns * norms**-1.5
        return np.asarray(weights / (weights @ np.linalg.norm(self.right, axis=0)))

    def region(self, space: Subspace) -> Slice:
        """Return the slice of the cone in which a feature's mean entry is about 1."""
        weights = self.weights(space.columns)
        typical = np.sqrt(self.size * len(weights))  # columns of norm √(b/D), root mean square
        return Slice(self.right, np.full(len(weights), SLACK / typical), weights)


def peel(space: Subspace, mixtures: Array) -> Rest:
    """Peel examples off a batch's gradient.

    Args:
        space: the whole.
        mixtures: `δ_b / r` of the examples found, (found, K).
    """
    size = space.batch_size
    if not len(mixtures):
        return Rest(np.eye(size), space.right, space.left * space.values)
    inside = (mixtures @ space.left).T
    basis = np.linalg.qr(inside, mode="complete")[0]
    found, others = basis[:, : len(mixtures)], basis[:, len(mixtures) :]
    frame = np.linalg.svd(others.T * space.values, full_matrices=False)[2]
    left = space.left - (space.left @ found) @ found.T
    return Rest(frame, np.ascontiguousarray(frame @ space.right), (left * space.values) @ frame.T)
