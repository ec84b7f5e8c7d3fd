"""The first layer's inputs in columns of its gradient that aren't in the core.

[ours] With δ of the core known, each entry that was sent in such a column is an equation, linear in
the pixel of the B examples:

    B ∂L/∂W_ip = Σ_b δ_bi x_bp.

A few of these leave some combinations of the examples open. And where the layer's outputs a_b are
known, up to a factor s_b, so are the pixels' sums over its active units: `W_i x_b = s_b a_bi`.
Both together mostly determine all pixels. What they leave open is taken as it was at the start, as
black, and its error is infinite.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import qr, solve_triangular

from attacks.lost.sent import Mask
from attacks.victim.gradients import Array, Layer

TOLD_BY_ENTRIES = 1e-4
"""Error, relative to the inputs, up to which entries are said to tell a combination of examples."""
WORST_CONDITION = 1e-6
"""Condition, inverse, of the equations at which they are said to determine all pixels."""


def level_of(outputs: Array, turn: Array, is_on: Mask) -> float:
    """Return the t > 0 of which the most of `outputs + t turn` are positive where is_on (m,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        borders = np.sort(-outputs / turn)
    borders = np.append(0.0, borders[np.isfinite(borders) & (borders > 0)])
    levels = np.append((borders[1:] + borders[:-1]) / 2, 2 * borders[-1] + 1e-300)
    agree = ((outputs + levels[:, None] * turn > 0) == is_on).sum(axis=1)
    return float(np.median(levels[agree == agree.max()]))


def by_entries(
    delta: Array, gradient: Array, sent: Mask, start: Array, std: float, size: float
) -> tuple[Array, Array, list[Array]]:
    """Return what entries say of columns: the nearest to a start, its variance, and what is open.

    Args:
        delta: δ / B, (B, m).
        gradient: (m, P), of these columns.
        sent: (m, P), which of its entries there are.
        start: (B, P).
        std: error of an entry.
        size: root mean square of the inputs.

    Returns:
        (B, P), variances (B, P), and for each column an orthonormal basis (B, d) of what is open.
    """
    clear = std / (TOLD_BY_ENTRIES * size)
    found, variance, bases = start.copy(), np.zeros_like(start), []
    for column, there in enumerate(sent.T):
        u, s, v = np.linalg.svd(delta[:, there].T)
        rank = int(np.sum(s > clear))
        u, s, known = u[:, :rank], s[:rank], v[:rank]
        rest = gradient[there, column] - start[:, column] @ delta[:, there]
        found[:, column] += ((u.T @ rest) / s) @ known
        variance[:, column] = std**2 * ((known.T / s) ** 2).sum(axis=1)
        bases.append(v[rank:].T)
    return found, variance, bases


def by_outputs(
    layer: Layer,
    lost: Mask,
    whole: Array,
    bases: list[Array],
    units: Mask,
    outputs: Array,
    is_on: Mask,
) -> tuple[Array, Array]:
    """Return what a layer's outputs say of what is open, in units of the bases, and its variance.

    Args:
        layer: the first.
        lost: which of its columns have something open, P of n.
        whole: its inputs (B, n), known but for that.
        bases: of each of these, (B, d), what is open.
        units: (m,), of which the outputs are known.
        outputs: (B, these), up to a factor for each example.
        is_on: (B, these), which aren't 0.

    Returns:
        Changes (B, P) of the inputs and their variances.
    """
    count = len(whole)
    owner = np.repeat(np.arange(len(bases)), [basis.shape[1] for basis in bases])
    share = np.hstack(bases)  # (B, U)
    rows, right = [], []
    for b, (x, a, on) in enumerate(zip(layer.augmented(whole), outputs, is_on, strict=True)):
        weight = layer.weight[units][on]
        block = np.zeros((len(weight), len(owner) + count))
        block[:, : len(owner)] = weight[:, : len(lost)][:, lost][:, owner] * share[b]
        block[:, len(owner) + b] = -a[on] / np.linalg.norm(a)
        rows.append(block)
        right.append(-weight @ x)
    change, variance = np.zeros((count, len(bases))), np.zeros((count, len(bases)))
    solved = _solved(np.vstack(rows), np.concatenate(right))
    if solved is None:
        return change, np.full_like(variance, np.inf)
    solution, spread = solved
    for column in range(len(bases)):
        own = owner == column
        change[:, column] = share[:, own] @ solution[: len(owner)][own]
        factor = spread[: len(owner)][own]
        variance[:, column] = np.square(share[:, own] @ factor).sum(axis=1)
    return change, variance


def _solved(matrix: Array, right: Array) -> tuple[Array, Array] | None:
    """Return the least-squares solution (U,), and C (U, U) of its covariance C Cᵀ.

    None where equations leave unknowns open.
    """
    equations, unknowns = matrix.shape
    if equations <= unknowns:
        return None
    q, r = qr(matrix, mode="economic")
    diagonal = np.abs(np.diag(r))
    if not diagonal.min() > WORST_CONDITION * diagonal.max():
        return None
    inverse = solve_triangular(r, np.eye(unknowns))
    solution = inverse @ (q.T @ right)
    rest = float(np.linalg.norm(right - matrix @ solution))
    return solution, inverse * (rest / np.sqrt(equations - unknowns))
