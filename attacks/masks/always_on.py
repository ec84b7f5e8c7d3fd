"""Units that every example of a batch turns on: they obey one linear map.

Where `u_i·q_b = T_i·t_b` holds for all b, `u_i = T_i A` with `t_b = A q_b`. So A (r, R) is a robust
regression of U on T, and t is no unknown any more. What tells examples apart are the other units,
whose masks differ within the batch; deep layers and correlated inputs have few of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.victim.gradients import Array

REWEIGHTED, POWER = 100, 1.5
"""Rounds of reweighting, by the residual's inverse to that power: many units are outliers."""
INLIER, INLIER_ERRORS = (1e-3, 1e-2), 4.0
"""Residual, relative to u_i, up to which a unit obeys the map: at least and at most, and between,
in units of what noise leaves."""
SPARE_ALWAYS_ON = 4
"""Units that obey it beyond the r that any map fits."""


@dataclass(frozen=True, eq=False)
class AlwaysOn:
    """The map of the units that are always on.

    Args:
        map: A, (r, R): `t = A q`.
        is_on: units that are on for all examples, (D,).
        is_off: units that are off for all, (D,); none for a ReLU, as they are dead.
    """

    map: Array
    is_on: NDArray[np.bool_]
    is_off: NDArray[np.bool_]

    @classmethod
    def of(cls, left: Array, targets: Array, low: float, precision: float) -> AlwaysOn | None:
        """Look for the map; None where too few units obey one.

        Args:
            left: U, (D, R).
            targets: T, (D, r).
            low: slope below 0; units that are always off obey `low · A`, and there may be more.
            precision: the worst relative error of what U spans.
        """
        regressed = _robust_map(left, targets)
        limit = float(np.clip(INLIER_ERRORS * precision, *INLIER))
        needed = targets.shape[1] + SPARE_ALWAYS_ON
        for factor in (1 / low, 1.0) if low else (1.0,):
            a = factor * regressed
            is_on, is_off = (_obey(left, targets, part, limit) for part in (a, low * a))
            if not low:
                is_off = np.zeros_like(is_on)
            # Of a leaky ReLU both kinds say which of them the map is that of.
            if is_on.sum() >= needed and (not low or is_off.sum() >= needed):
                fitted = np.linalg.lstsq(targets[is_on], left[is_on], rcond=None)[0]
                return cls(np.asarray(fitted, dtype=np.float64), is_on, is_off)
        return None


def _robust_map(left: Array, targets: Array) -> Array:
    """Return the A (r, R) that most units obey, by reweighted least squares."""
    sizes = np.maximum(np.linalg.norm(targets, axis=1, keepdims=True), 1e-300)
    u, t = left / sizes, targets / sizes
    weight = np.ones((len(u), 1))
    for _ in range(REWEIGHTED):
        a = np.linalg.lstsq(weight * t, weight * u, rcond=None)[0]
        off = np.linalg.norm(u - t @ a, axis=1, keepdims=True)
        weight = np.maximum(off, 1e-6 * np.median(off) + 1e-300) ** (-POWER / 2)
    return np.asarray(a)


def _obey(left: Array, targets: Array, a: Array, limit: float) -> NDArray[np.bool_]:
    off = np.linalg.norm(left - targets @ a, axis=1)
    return np.asarray(off <= limit * np.linalg.norm(left, axis=1))
