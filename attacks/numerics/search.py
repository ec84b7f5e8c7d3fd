"""Minima of functions of one number, evaluated at many places at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

POINTS = 17
"""Places in a bracket on each pass of a zoom; the next bracket lies between three of them."""
ZOOMED = (POINTS - 1) / 2
"""How much narrower each pass makes it."""


def minima_of(values: Array) -> NDArray[np.intp]:
    """Return the indices of the local minima, but for the ends and the ripple on plateaus."""
    deeper = values[1:-1] * (1 + 1e-9)
    return np.flatnonzero((deeper < values[:-2]) & (deeper <= values[2:])) + 1


def zoom(objective: Callable[[Array], Array], low: Array, high: Array, *, passes: int) -> Array:
    """Narrow brackets around minima, all at once, eightfold a pass.

    Args:
        objective: maps places (n,) to values (n,).
        low: the brackets' ends nearer to 0, (N,), of the sign of `high`.
        high: the other ends, (N,).
        passes: how often.

    Returns:
        The brackets' middles, (N,), in the logarithm.
    """
    for _ in range(passes if len(low) else 0):
        points = np.geomspace(low, high, POINTS)
        values = objective(points.ravel()).reshape(points.shape)
        least = values.argmin(axis=0).clip(1, POINTS - 2)
        low, high = (points[least + k, np.arange(len(least))] for k in (-1, 1))
    return np.asarray(np.sign(low) * np.sqrt(low * high))
