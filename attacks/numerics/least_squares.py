"""Linear least squares in whitened equations: how far each unknown is determined."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BAR = 4.0
"""Standard deviations in an error bar: 1 in 16,000 lies outside, for Gaussian errors."""


def left_inverse(design: Array) -> Array:
    """Return the (n, m) matrix that maps a whitened target (m,) to the least-squares step (n,).

    Its rows' norms are the standard errors. A direction without an equation gets a huge one, not
    zero, as from a pseudo-inverse.
    """
    sizes = np.linalg.norm(design, axis=0)
    sizes = np.where(sizes > 0, sizes, 1e-100)
    left, singular, right = np.linalg.svd(design / sizes, full_matrices=False)
    inverse = right.T / np.maximum(singular, 1e-14) @ left.T
    return np.asarray(inverse / sizes[:, None])


def standard_errors(wanted: Array, inverse: Array) -> Array:
    """Return those of linear combinations (N, n) of what `inverse` (n, m) estimates, (N,)."""
    factor = np.asarray(np.linalg.qr(inverse.T, mode="r"))
    return np.asarray(np.linalg.norm(wanted @ factor.T, axis=1))
