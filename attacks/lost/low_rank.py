"""The entries that are missing of a matrix of low rank, where rows and columns have enough others.

By alternating least squares, `min ‖M ⊙ (L Rᵀ − G)‖`, from the leading singular vectors of G with
zeros for what is missing (P. Jain, P. Netrapalli, S. Sanghavi, "Low-rank matrix completion using
alternating minimization", STOC 2013).
"""

from __future__ import annotations

import numpy as np

from attacks.lost.sent import Mask
from attacks.victim.gradients import Array

SPARE_ENTRIES = 1.5
"""Entries of a row or a column that were sent, for each unknown, at least."""
LOW_RANK_SWEEPS = 300
"""Most sweeps of alternating least squares."""
COMPLETED = 1e-6
"""Relative fall of the residual in a sweep at which they have converged."""
ENTRY_RIDGE = 1e-12
"""Damping, relative to the mean square of a row's equations."""


def core_of(sent: Mask, least: float) -> tuple[Mask, Mask]:
    """Return the rows and columns of which all have enough entries, among each other.

    Args:
        sent: (m, n), which entries there are.
        least: entries that are enough.
    """
    rows, columns = np.ones(len(sent), dtype=bool), np.ones(sent.shape[1], dtype=bool)
    while True:
        before = int(rows.sum() + columns.sum())
        rows = rows & (sent[:, columns].sum(axis=1) >= least)
        columns = columns & (sent[rows].sum(axis=0) >= least)
        if int(rows.sum() + columns.sum()) == before:
            return rows, columns


def complete_low_rank(gradient: Array, sent: Mask, rank: int) -> Array:
    """Return a matrix (m, n) with what is missing put in; what was sent stays as it is.

    Args:
        gradient: (m, n), whose rows and columns all have more entries than the rank.
        sent: (m, n), which of its entries there are.
        rank: at most min(m, n).
    """
    if sent.all():
        return gradient
    known, weight = np.where(sent, gradient, 0.0), sent.astype(np.float64)
    _, values, right = np.linalg.svd(known, full_matrices=False)
    right = right[:rank].T * np.sqrt(values[:rank])
    last = np.inf
    for _ in range(LOW_RANK_SWEEPS):
        left = np.linalg.qr(_fitted(known, weight, right))[0]
        right = _fitted(known.T, weight.T, left)
        product = left @ right.T
        rest = float(np.linalg.norm((product - known)[sent]))
        if last - rest <= COMPLETED * rest:
            break
        last = rest
    return np.where(sent, gradient, product)


def _fitted(known: Array, weight: Array, factor: Array) -> Array:
    """Return the rows (m, r) whose products with a factor (n, r) are nearest to what is known."""
    rank = factor.shape[1]
    squares = (factor[:, :, None] * factor[:, None, :]).reshape(len(factor), -1)
    normal = (weight @ squares).reshape(-1, rank, rank)
    size = np.trace(normal, axis1=1, axis2=2) / rank
    normal += (ENTRY_RIDGE * np.maximum(size, 1e-300))[:, None, None] * np.eye(rank)
    return np.asarray(np.linalg.solve(normal, (known @ factor)[:, :, None])[:, :, 0])
