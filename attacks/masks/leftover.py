"""Where the q of missing examples lie, by the masks of those that are found.

[ours] Of an example that is found, the input is known but for those of the missing: with P the
pseudo-inverse of the found q and F an orthonormal basis of what is orthogonal to them, it is

    m_b = (P_b + F c_b)ᵀ S V,      c_b unknown.

But its mask says on which side of zero each unit of the layer is, `± (W m_b)_i > 0`, for D units
and few unknowns: one-bit measurements of c_b, whose error falls as their number grows. The point of
the widest margin, a linear program, gives m_b to some tenths down to some hundredths; and the q of
all missing examples are orthogonal to the duals `P_b + F c_b` of the found ones. In that space they
are few, and random starts end at them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from attacks.masks.equation import MaskEquation
from attacks.masks.polish import Pair, beside
from attacks.victim.gradients import Array


def leftover_space(equation: MaskEquation, found: Sequence[Pair], kept: float) -> Array:
    """Return an orthonormal basis (R, R − n) of about the space that the missing q lie in.

    Arguments: those of `rough_duals`.
    """
    duals = rough_duals(equation, found, kept)
    return np.asarray(np.linalg.qr(duals.T, mode="complete")[0][:, len(found) :])


def rough_duals(equation: MaskEquation, found: Sequence[Pair], kept: float) -> Array:
    """Return about the vectors d_b (n, R) of which `d_bᵀ S V` are the inputs of examples found.

    Args:
        equation: of the layer.
        found: n pairs, fewer than R and linearly independent.
        kept: share of the layer's outputs that dropout left: one that it dropped may have been on.
    """
    free = beside(found)
    known = np.linalg.pinv(np.array([pair.q for pair in found])).T
    outputs = (equation.values[:, None] * equation.right) @ equation.outputs
    duals = []
    for own, pair in zip(known, found, strict=True):
        told = pair.is_on if kept < 1 else np.ones_like(pair.is_on)
        duals.append(_within_mask(own, free, outputs[:, told], pair.is_on[told]))
    return np.array(duals)


def _within_mask(known: Array, free: Array, outputs: Array, is_on: NDArray[np.bool_]) -> Array:
    """Return the dual vector (R,) that turns on the units of a mask by the widest margin.

    Args:
        known: (R,), the part of it that the found q determine, but for its sign.
        free: (R, k), orthonormal, where the rest of it lies.
        outputs: (R, N), of the layer on the rows of S V.
        is_on: (N,), the mask.
    """
    count = free.shape[1]
    best, widest = known, -np.inf
    for sign in (1.0, -1.0):
        sides = sign * np.where(is_on, 1.0, -1.0) * outputs
        sides /= np.maximum(np.linalg.norm(sides, axis=0), 1e-300)
        answer = linprog(
            np.append(np.zeros(count), -1.0),
            A_ub=np.column_stack([-(sides.T @ free), np.ones(sides.shape[1])]),
            b_ub=known @ sides,
            bounds=[(None, None)] * count + [(None, 1.0)],
        )
        if answer.status == 0 and answer.x[-1] > widest:
            best, widest = known + free @ answer.x[:-1], float(answer.x[-1])
    return np.asarray(best)
