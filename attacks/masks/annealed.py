"""Step 2, beyond the closed form: masks that are probabilities, and harden.

For masks P, `p_i` the probability that unit i is on, a pair minimises the expected misfit

    Σ_i p_i (u_i·q − w_i)² + (1 − p_i)(u_i·q − low·w_i)²,      w = T t,  ‖q‖ = 1.

Its t follows from q by least squares, and q is the largest eigenvector of an r × r matrix, whatever
R. In turn `p_i = σ((d_i² − h_i²) / 2τ²)` of the distances d to the low value and h to the high one,
with τ falling: expectation maximisation, annealed. Several starts side by side.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from attacks.masks.equation import MaskEquation
from attacks.victim.gradients import Array

WARM, COLD = np.geomspace(0.5, 0.02, 40), np.geomspace(0.1, 0.02, 16)
"""τ, in root mean squares of w: from masks that are guessed, and from nearly right ones."""
HOT, LUKEWARM = WARM[:16], WARM[16:]
"""The first's halves: in a part of the space, and from there in all of it."""
GRAM_RIDGE = 1e-9
"""Added to `TᵀPT`, which a mask of few units leaves singular."""
SQUARINGS = 6
"""Of a matrix whose largest eigenvector is wanted: its ratio to the next one, to the 64th power."""


def anneal(equation: MaskEquation, masks: Array, temperatures: Array) -> tuple[Array, Array]:
    """Harden masks; return the pairs they end at.

    Args:
        equation: the whole.
        masks: probabilities (N, D) to start from.
        temperatures: τ, falling.

    Returns:
        q (N, R) of norm 1 and t (N, r).
    """
    q, t = expected_pairs(equation, equation.with_known(masks))
    for temperature in temperatures:
        q, t = expected_pairs(equation, expected_masks(equation, q, t, float(temperature)))
    return q, t


def expected_masks(equation: MaskEquation, q: Array, t: Array, temperature: float) -> Array:
    """Return the probabilities (N, D) that units are on, for pairs q (N, R) and t (N, r)."""
    fitted, w = q @ equation.left.T, t @ equation.targets.T
    spread = temperature * np.sqrt(np.mean(w**2, axis=1, keepdims=True)) + 1e-150
    gain = (fitted - equation.low * w) ** 2 - (fitted - w) ** 2
    return equation.with_known(expit(gain / (2 * spread**2)))


def expected_pairs(equation: MaskEquation, masks: Array) -> tuple[Array, Array]:
    """Return the pairs q (N, R) and t (N, r) of least expected misfit under masks (N, D)."""
    low, targets = equation.low, equation.targets
    square, cross = masks + low**2 * (1 - masks), masks + low * (1 - masks)
    gram = np.einsum("dr,nds->nrs", targets, square[:, :, None] * targets, optimize=True)
    gram += GRAM_RIDGE * np.eye(targets.shape[1])
    shared = equation.left.T @ (cross[:, :, None] * targets)
    half = np.linalg.solve(np.linalg.cholesky(gram), shared.transpose(0, 2, 1))
    top = _largest(half @ half.transpose(0, 2, 1))
    q = np.einsum("nrb,nr->nb", half, top)
    q /= np.maximum(np.linalg.norm(q, axis=1, keepdims=True), 1e-300)
    along = np.einsum("nbr,nb->nr", shared, q)
    return q, np.linalg.solve(gram, along[:, :, None])[:, :, 0]


def _largest(matrices: Array) -> Array:
    """Return about the largest eigenvectors (N, r) of positive matrices (N, r, r), by squaring."""
    for _ in range(SQUARINGS):
        matrices = matrices @ matrices
        matrices = (
            matrices / np.maximum(np.trace(matrices, axis1=1, axis2=2), 1e-300)[:, None, None]
        )
    longest = np.argmax(np.diagonal(matrices, axis1=1, axis2=2), axis=1)
    return np.asarray(matrices[np.arange(len(matrices)), longest])
