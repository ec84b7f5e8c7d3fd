"""Every pixel by its own column of the first layer's gradients, weighted, and within its range.

[ours] Given δ, the gradients' column p is a linear equation in the n examples' inputs there,
`G_jp = Σ_b δ_jb x_bp + noise`, of a noise that may be another in each entry; and a pixel is neither
darker than black nor lighter than white.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.victim.gradients import Array

BOX_SWEEPS = 20
"""Of coordinate descent."""
LEAST_BIAS_INPUT = 1e-3
"""Input of a bias below which it says nothing of the factor."""
COLUMN_RIDGE = 1e-12
"""What is added to the diagonal, of 1."""


@dataclass(frozen=True, eq=False)
class Box:
    """The least and the largest input on any image.

    Args:
        low: (d,).
        high: (d,).
    """

    low: Array
    high: Array


def by_columns(
    down: Array, rows: Array, precision: Array | None, box: Box | None, *, has_bias: bool
) -> tuple[Array, Array, Array]:
    """Return inputs (n, d) of least squares, those within the box, and standard deviations (n,).

    A bias's input, the last one, is 1, which says what factor δ is off by.

    Args:
        down: δ, (n, units).
        rows: (units, d), of noise of variance 1.
        precision: of a noise that isn't, (units, d), its inverse variance; None: it is.
        box: of inputs; None where nothing is told of their range.
        has_bias: whether the last column is a bias's.
    """
    count, width = len(down), rows.shape[1]
    if precision is None:
        normal = (down @ down.T)[None]
        right = (down @ rows).T
    else:
        pairs = (down[:, None] * down).reshape(count**2, -1)
        normal = (pairs @ precision).T.reshape(width, count, count)
        right = (down @ (precision * rows)).T
    inverse = _inverses(normal)
    free = np.einsum("pij,pj->pi", np.broadcast_to(inverse, (width, count, count)), right)
    variance = np.diagonal(inverse, axis1=1, axis2=2).mean(axis=0)
    whole = np.broadcast_to(normal, (width, count, count))
    scale = np.ones(count)
    if has_bias:
        scale = np.where(np.abs(free[-1]) > LEAST_BIAS_INPUT, free[-1], 1.0)
    inputs = free if box is None else _within(whole, right, free, box, scale)
    std = np.sqrt(np.maximum(variance, 0.0))
    return (free / scale).T, (inputs / scale).T, std


def _inverses(normal: Array) -> Array:
    """Return the inverses of positive definite matrices (P, n, n), or nearly such."""
    size = np.sqrt(np.maximum(np.diagonal(normal, axis1=1, axis2=2), 1e-200))
    scaled = normal / size[:, None] / size[..., None]
    ridge = COLUMN_RIDGE * np.eye(normal.shape[1])
    return np.asarray(np.linalg.inv(scaled + ridge) / size[:, None] / size[..., None])


def _within(normal: Array, right: Array, inputs: Array, box: Box, scale: Array) -> Array:
    """Return the inputs (d, n) of least squares within the box's multiples, a coordinate a time."""
    low, high = np.sort(np.stack([np.outer(end, scale) for end in (box.low, box.high)]), axis=0)
    found = np.clip(inputs, low, high)
    for _ in range(BOX_SWEEPS):
        for b in range(found.shape[1]):
            own = np.maximum(normal[:, b, b], 1e-300)
            slope = np.einsum("pi,pi->p", normal[:, b], found) - right[:, b]
            found[:, b] = np.clip(found[:, b] - slope / own, low[:, b], high[:, b])
    return found
