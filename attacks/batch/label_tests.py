"""What an example's `p − y` has to satisfy, whatever its label: equations from all the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from attacks.batch.sharpen import Ray
from attacks.batch.subspace import Subspace
from attacks.victim.gradients import Array

LEAST_TESTS = {1: 4, 2: 8}
"""Equations that a label of one or two classes has to satisfy, with its 2 or 3 unknowns."""


@dataclass(frozen=True, eq=False)
class LabelTests:
    """`A (p − y) = 0`, with `A 1 = 0`; A is `Tᵀ diag(1/r)` but for that.

    Args:
        matrix: A, (t, K).
        rows: r, (K,).
    """

    matrix: Array
    rows: Array

    @classmethod
    def of(cls, space: Subspace, others: Sequence[Ray]) -> LabelTests:
        """Take the complement of the column space and the duals of other rays."""
        tests = space.complement.T
        if others:
            duals = np.array([space.left @ (ray.q / space.values) for ray in others])
            tests = np.vstack([tests, duals / np.linalg.norm(duals, axis=1, keepdims=True)])
        matrix = tests / space.rows
        # Labels in single precision sum to 1 + 1e-7: what all classes share isn't tested.
        shared = matrix.sum(axis=1)
        shared /= max(float(np.linalg.norm(shared)), 1e-300)
        return cls(matrix - np.outer(shared, shared @ matrix), space.rows)

    def suffice_for(self, classes: int) -> bool:
        """Say whether a label of so many classes is tested; one equation is always satisfied."""
        return len(self.matrix) - 1 >= LEAST_TESTS[classes]

    @cached_property
    def norms(self) -> Array:
        """Norms of A's columns, (K,), floored."""
        norms = np.linalg.norm(self.matrix, axis=0)
        return np.asarray(np.maximum(norms, 1e-10 * norms.max()))

    @cached_property
    def correlations(self) -> Array:
        """Cosines between A's columns, (K, K)."""
        unit = self.matrix / self.norms
        return unit.T @ unit

    @cached_property
    def determinants(self) -> Array:
        """`1 / (1 − cosine²)` for every pair below the diagonal, 0 elsewhere; (K, K)."""
        return np.tril(1 / np.maximum(1 - self.correlations**2, 1e-9), -1)

    def best_classes(self, along: Array, number: int) -> tuple[int, ...]:
        """Return the one or two classes that explain most, given the target along A's columns."""
        if number == 1:
            return (int(along.argmax()),)
        gain = self.correlations * np.multiply.outer(along, -2 * along)
        gain += along**2
        gain += (along**2)[:, None]
        gain *= self.determinants
        return divmod(int(gain.argmax()), len(along))
