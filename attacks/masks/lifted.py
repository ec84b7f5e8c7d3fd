"""Step 2, in closed form: all pairs at once from the null space of lifted equations.

That each unit is two-valued is an equation of second degree,

    (u_i·q − T_i·t)(u_i·q − low · T_i·t) = 0,

linear in the lift `(q qᵀ, q tᵀ, t tᵀ)` of the pair (without `t tᵀ` for a ReLU). D such equations in
M monomials have a null space that the lifts of the R examples span where D ≥ M − R and nothing else
is in it. Of two random combinations of it, the parts in `q qᵀ` are `Q C₁ Qᵀ` and `Q C₂ Qᵀ`, C
diagonal and the q in Q's columns; so these are the eigenvectors of `(Q C₁ Qᵀ)(Q C₂ Qᵀ)⁻¹`.

Where units that are always on give `t = A q`, that is an equation in `q qᵀ` alone, of which the
other units have to be R (R + 1) / 2 − R.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from attacks.masks.equation import MaskEquation
from attacks.victim.gradients import Array

COMBINATIONS = 4
"""Pairs of combinations: one may mix two examples whose coefficients are alike."""
FEW_MONOMIALS, MOST_MONOMIALS = 400, 1500
"""Monomials up to which the null space takes less than random starts do (M³ flops), and up to which
it is worth while where they fail."""


def lifted_directions(
    equation: MaskEquation, generator: torch.Generator, *, is_quick: bool = True
) -> Iterator[Array]:
    """Yield candidates for all q, (R, R) each; none where there are too few units for that.

    Args:
        equation: of a layer.
        generator: draws combinations.
        is_quick: whether there are to be few monomials, or many.
    """
    size = equation.size
    monomials = _count(equation)
    known = equation.always_on
    units = len(equation.left)
    if known is not None:
        units -= int(known.is_on.sum() + known.is_off.sum())
    low, high = (0, FEW_MONOMIALS) if is_quick else (FEW_MONOMIALS, MOST_MONOMIALS)
    if not (monomials - size <= units and low < monomials <= high):
        return
    triangle = np.linalg.qr(_lift(equation), mode="r")
    null = np.linalg.svd(triangle)[2][-size:]
    squares = _symmetric(null[:, : size * (size + 1) // 2], size)
    for _ in range(COMBINATIONS):
        weights = torch.randn(2, size, generator=generator, dtype=torch.float64).numpy()
        first, second = np.tensordot(weights, squares, 1)
        try:
            q = np.linalg.eig(np.linalg.solve(second, first).T)[1].T
        except np.linalg.LinAlgError:
            continue
        q = np.real(q)  # of two examples that are mixed up, a plane
        yield q / np.maximum(np.linalg.norm(q, axis=1, keepdims=True), 1e-300)


def _count(equation: MaskEquation) -> int:
    """Return M."""
    size, rank = equation.size, int(equation.targets.shape[1])
    if equation.always_on is not None:
        return size * (size + 1) // 2
    squares = rank * (rank + 1) // 2 if equation.low else 0
    return size * (size + 1) // 2 + size * rank + squares


def _lift(equation: MaskEquation) -> Array:
    """Return the equations (D, M), rows of norm 1; of units that are always on, of zeros."""
    u, t, low = equation.left, equation.targets, equation.low
    known = equation.always_on
    if known is not None:
        w = t @ known.map
        rows = _products(u - (1 + low) / 2 * w) - ((1 - low) / 2) ** 2 * _products(w)
        rows[known.is_on | known.is_off] = 0
    else:
        mixed = -(1 + low) * (u[:, :, None] * t[:, None, :]).reshape(len(u), -1)
        parts = [_products(u), mixed, low * _products(t)] if low else [_products(u), mixed]
        rows = np.hstack(parts)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300))


def _products(rows: Array) -> Array:
    """Return the products of each row's entries, (D, n (n + 1) / 2): `row rowᵀ`, isometric."""
    i, j = np.triu_indices(rows.shape[1])
    return np.asarray(rows[:, i] * rows[:, j] * np.where(i == j, 1, np.sqrt(2)))


def _symmetric(vectors: Array, size: int) -> Array:
    """Return the matrices (N, n, n) with such entries."""
    i, j = np.triu_indices(size)
    matrices = np.zeros((len(vectors), size, size))
    matrices[:, i, j] = vectors / np.where(i == j, 1, np.sqrt(2))
    matrices[:, j, i] = matrices[:, i, j]
    return matrices
