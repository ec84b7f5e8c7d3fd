"""How many examples a layer's gradient shows at least: its rank, beyond what rounding adds."""

from __future__ import annotations

import numpy as np

from attacks.victim.gradients import Array

CLEARLY = 3.0
"""By how much a singular value is larger than noise and rounding explain: the latter is known
roughly."""


def largest_of_rounding(variance: Array) -> float:
    """Return about the largest singular value of independent errors, by their variances (m, n)."""
    by_row, by_column = variance.sum(axis=1).max(), variance.sum(axis=0).max()
    return float(np.sqrt(by_row) + np.sqrt(by_column) + 5 * np.sqrt(variance.max()))


def rank_beyond(gradient: Array, variance: Array) -> int:
    """Count the singular values of a gradient (m, n) that errors of a variance don't explain."""
    values = np.linalg.svd(gradient, compute_uv=False)
    return int((values > CLEARLY * largest_of_rounding(variance)).sum())
