"""Step 3: a pair from its own hard mask, and how well it fits.

A mask once known, each unit gives an equation, `u_i·q = s_i T_i·t` with `s_i` in {low, 1}, so
(q, t) is their least-squares solution; with noise σ in every entry of G_w (total least squares: in
coordinates `p = S⁻¹ q` it is the same in all of `U S`),

    min_{p, t}  ‖U S p − diag(s) T t‖² / ‖p‖²,

the smallest singular vector of what `diag(s) T` doesn't reach. The mask is taken again until it
stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.masks.equation import MaskEquation
from attacks.victim.gradients import Array

MASK_ROUNDS = 10
NOISE_LIMIT = 8.0
"""Misfit of an example, in units of what noise leaves."""
MISFIT_BOUNDS, NOISE_ALONE = (1e-5, 0.05), 1.5
"""Its limit is no less and no more, but for noise that alone leaves as much: false pairs have 0.08
and more."""
CLEAR_MASK = 3.0
"""By how much the second smallest singular value exceeds the smallest, and noise, where the mask
determines q: two examples with one mask leave their plane open."""
LEAST_CLEAR = 1e-9
"""The same, relative to the equations, in float64."""


@dataclass(frozen=True, eq=False)
class Pair:
    """What may be an example.

    Args:
        q: (R,), of norm 1, of either sign; `δ_b ∝ U q`.
        t: (r,).
        is_on: (D,), the mask.
        misfit: of the equations, relative to ‖U q‖.
        limit: up to which it is taken for an example's.
        is_clear: whether the mask determines q.
    """

    q: Array
    t: Array
    is_on: NDArray[np.bool_]
    misfit: float
    limit: float
    is_clear: bool

    @property
    def is_example(self) -> bool:
        """Whether it is taken for one, or where its mask is another's, too, for part of both."""
        return self.misfit <= self.limit


def beside(pairs: Sequence[Pair]) -> Array:
    """Return an orthonormal basis (R, R − n) of what is orthogonal to the q of n pairs."""
    q = np.array([pair.q for pair in pairs])
    return np.asarray(np.linalg.qr(q.T, mode="complete")[0][:, len(pairs) :])


def polish(equation: MaskEquation, q: Array, t: Array | None = None) -> list[Pair]:
    """Sharpen a pair; without t, from the q alone of an example.

    Returns:
        It alone, or where examples share its mask, pairs that span theirs.
    """
    parts, targets, low = equation.parts, equation.targets, equation.low
    p = q / equation.values
    p = p / np.linalg.norm(p)
    fitted = parts @ p
    t = _first_t(equation, p) if t is None else t * float(np.linalg.norm(fitted))  # of q of norm 1
    is_on = _mask(fitted, targets @ t, low)
    for _ in range(MASK_ROUNDS):
        basis, triangle = np.linalg.qr(np.where(is_on, 1.0, low)[:, None] * targets)
        _, values, right = np.linalg.svd(parts - basis @ (basis.T @ parts), full_matrices=False)
        fitted = right @ parts.T
        t = np.linalg.lstsq(triangle, basis.T @ fitted.T, rcond=None)[0].T
        before, is_on = is_on, _mask(fitted[-1], targets @ t[-1], low)
        if (is_on == before).all():
            break
    noise = equation.sigma * np.sqrt(max(len(parts) - equation.unknowns, 1))
    closed = CLEAR_MASK * max(float(values[-1]), noise, LEAST_CLEAR * float(equation.values[-1]))
    count = max(int((values < closed).sum()), 1)
    sizes = np.maximum(np.linalg.norm(fitted, axis=1), 1e-300)
    norms = np.linalg.norm(equation.values * right, axis=1)
    return [
        Pair(
            equation.values * right[row] / norms[row],
            t[row] / norms[row],
            is_on,
            float(values[row] / sizes[row]),
            _limit(noise / sizes[row], equation.target_error),
            count == 1,
        )
        for row in range(-1, -count - 1, -1)
    ]


def _limit(noise: float, target_error: float) -> float:
    """Return up to which misfit a pair is taken for an example's."""
    low, high = MISFIT_BOUNDS
    least = max(NOISE_LIMIT * (noise + target_error), low)
    return float(min(least, max(NOISE_ALONE * noise, high)))


def _first_t(equation: MaskEquation, p: Array) -> Array:
    """Return the t that a map gives, or one by which about half of the units are on."""
    if equation.always_on is not None:
        return np.asarray(equation.always_on.map @ (equation.values * p))
    return np.asarray(2 / (1 + equation.low) * (equation.targets.T @ (equation.parts @ p)))


def _mask(fitted: Array, w: Array, low: float) -> NDArray[np.bool_]:
    return np.asarray(np.abs(fitted - w) < np.abs(fitted - low * w))
