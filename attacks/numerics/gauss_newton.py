"""Nonlinear least squares in a few unknowns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def gauss_newton(
    step: Callable[[Array], Array | None],
    start: Array,
    *,
    scales: int,
    longest: float,
    tolerance: float,
    most: int,
) -> tuple[Array, bool]:
    """Follow Gauss-Newton steps until they are small.

    Args:
        step: maps unknowns (n,) to the step that solves the equations linearised there; None where
            it isn't worth while to go on.
        start: (n,).
        scales: how many of the first unknowns are scales, never 0, whose relative change counts.
        longest: the largest such change in a step; a longer step is shortened.
        tolerance: the change from which on the next one would be rounding.
        most: steps.

    Returns:
        The unknowns, and whether they settled.
    """
    x = start
    for _ in range(most):
        change = step(x)
        if change is None:
            return x, False
        size = float(np.abs(change[:scales] / x[:scales]).max())
        x = x + min(1.0, longest / max(size, 1e-300)) * change
        if size <= tolerance:
            return x, True
    return x, False
