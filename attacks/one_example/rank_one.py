"""A matrix of rank one and errors: its leading singular pair, and what the errors add up to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.types import GradientLeak
from attacks.victim.gradients import Array, Matrix

SAMPLE, RUN = 2**17, 16
"""Entries on which noise is measured where a matrix has many more, and how many lie together."""


@dataclass(frozen=True, eq=False)
class Errors:
    """Independent errors of variances v (K, D) in a gradient `α gᵀ`, as far as they matter.

    Args:
        rows: Σ_j v_kj g_j², (K,), the variances that they give α.
        columns: Σ_k v_kj α_k², (D,), those of g, times ‖α‖⁴.
        mean: of v, over the entries that aren't 0.
        row: the largest of the rows' sums of v.
        column: the largest of the columns' sums.
        most: the largest of all.
    """

    rows: Array
    columns: Array
    mean: float
    row: float
    column: float
    most: float

    @property
    def rms(self) -> float:
        """Root mean square, over the entries that have any error."""
        return float(np.sqrt(self.mean))

    @property
    def largest(self) -> float:
        """A bound of the errors' largest singular value, but for 1 case in 100,000.

        A. S. Bandeira, R. van Handel, "Sharp nonasymptotic bounds on the norm of random matrices
        with independent entries", Annals of Probability 2016, up to constants that are 1 for equal
        entries.
        """
        return float(np.sqrt(self.row) + np.sqrt(self.column) + 5 * np.sqrt(self.most))

    def plus(self, other: Errors) -> Errors:
        """Add the variances of other, independent errors."""
        return Errors(*(a + b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def times(self, factor: float) -> Errors:
        """Multiply all variances."""
        return Errors(*(factor * part for part in self._parts()))

    def _parts(self) -> tuple[Any, ...]:
        return (self.rows, self.columns, self.mean, self.row, self.column, self.most)

    @classmethod
    def of_noise(cls, sigma: float, α: Array, g: Array, live: NDArray[np.bool_]) -> Errors:
        """Return those of noise of one variance in all live columns."""
        variance, size, count = sigma**2, float(α @ α), int(live.sum())
        rows = np.full(len(α), variance)
        columns = np.where(live, variance * size, 0.0)
        return cls(rows, columns, variance, variance * count, variance * len(α), variance)

    @classmethod
    def of_rounding(cls, leak: GradientLeak, names: tuple[str, ...], α: Array, g: Array) -> Errors:
        """Return those of float rounding, as `GradientLeak.rounding` has them entry by entry."""
        if leak.update_dtype is not None:
            parts = [np.square(leak.rounding(name).numpy()) for name in names]
            v = np.hstack([part.reshape(len(α), -1) for part in parts])
            count = max(int(np.count_nonzero(v)), 1)
            rows, columns = v @ g**2, α**2 @ v
            sums = v.sum(axis=1), v.sum(axis=0)
            mean = float(sums[0].sum()) / count
            row, column = (float(part.max()) for part in sums)
            return cls(rows, columns, mean, row, column, float(v.max()))
        # Relative to the entries, which are the products α_k g_j.
        eps = max(leak.roundoff(name) for name in names)
        a, b = (eps * α) ** 2, g**2
        count = max(int(np.count_nonzero(a)) * int(np.count_nonzero(b)), 1)
        mean = float(a.sum() * b.sum()) / count
        rows, columns = a * float(b @ b), float(α**2 @ a) * b
        most = float(a.max() * b.max())
        return cls(rows, columns, mean, float(a.max() * b.sum()), float(a.sum() * b.max()), most)


def rank_one(gradient: Matrix) -> tuple[Array, Array, float, float, float]:
    """Estimate `G ≈ α gᵀ` by its leading singular pair, with ‖g‖ = 1 and Σ α = 0.

    By the power method, in the gradient's own precision: a few products with G, no copy of it.

    Args:
        gradient: (K, D), not zero; its columns sum to 0 but for errors, as in the last layer,
            where p and y both sum to 1.

    Returns:
        α (K,), g (D,); what Σ α was before centring; the standard deviation of what is left, over
        the entries of columns that aren't zero altogether (a dead feature's column is exactly zero
        and carries no noise); and its largest singular value. Both of the latter are taken from a
        sample of columns where the matrix is large.
    """
    draws = np.random.default_rng(0)
    dtype = gradient.dtype
    eps = float(np.finfo(dtype).eps)

    def times(vector: Matrix) -> tuple[Array, float]:
        product = np.asarray(gradient @ vector.astype(dtype), dtype=np.float64)
        return product - product.mean(), float(product.sum())

    # Features are mostly of one sign: then hardly anything cancels.
    α, drift = times(np.asarray(1 + draws.uniform(-0.5, 0.5, gradient.shape[1])))
    for _ in range(200):
        unit = α / np.linalg.norm(α)
        g = np.asarray(gradient.T @ unit.astype(dtype), dtype=np.float64)
        g /= np.linalg.norm(g)
        α, drift = times(g)
        if np.linalg.norm(α / np.linalg.norm(α) - unit) < 16 * eps:
            break
    columns = sample_columns(g, len(α))
    part = gradient[:, columns].astype(np.float64)
    part -= part.mean(axis=0)
    along = part.T @ (part @ g[columns])  # again, in float64
    along /= float(np.linalg.norm(along))
    rest = part - np.outer(part @ along, along)
    freedom = max((len(α) - 2) * (len(columns) - 1), 1)
    sigma = float(np.linalg.norm(rest) / np.sqrt(freedom))
    direction = rest @ draws.standard_normal(len(columns))
    for _ in range(3):
        direction /= max(float(np.linalg.norm(direction)), np.finfo(float).tiny)
        direction = rest @ (direction @ rest)
    return α, g, drift, sigma, float(np.linalg.norm(direction)) ** 0.5


def sample_columns(g: Array, rows: int) -> NDArray[np.intp]:
    """Return the live columns (n,) of a matrix `α gᵀ`; of a large one a sample, in short runs."""
    live = g != 0
    runs = max(SAMPLE // (rows * RUN), 2)
    if len(g) > 2 * runs * RUN:
        starts = np.linspace(0, len(g) - RUN, runs).astype(np.intp)
        some = (starts[:, None] + np.arange(RUN)).ravel()
        if np.count_nonzero(live[some]) > len(some) // 8:
            return np.asarray(some[live[some]])
    return np.flatnonzero(live)
