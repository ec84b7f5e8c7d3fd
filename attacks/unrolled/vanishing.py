"""Directions that vanish at many units exactly, which are the examples'.

A unit that is off for an example in all steps that take it has nothing of it: with `D_1 = U S V`,
`δ_b = U q_b` and `u_i·q_b = 0`, but for rounding, whatever the weights above have become, however
many steps there were, and whichever took the example. Two units in five are, others move by a
thousand roundings and more. Where a direction starts near enough, weights `1 / (1 + (u_i·q / s)²)`
with s a falling quantile of `|u_i·q|` lead to q_b itself. Starts are random here, and those of
`attacks.unrolled.dual` come from inputs.

What lies between two examples vanishes where both are off, and at a unit or two by choice. Those
units leave a plane, not a direction: so a direction counts if its units still leave no other when
the few are left out that hold it best. And two examples that hide each other are told apart from
one that is found: among the units where it is off, the other stands alone but for a multiple of
the one; which multiple is seen where further units vanish together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.masks.equation import MaskEquation
from attacks.victim.gradients import Array

SCHEDULES = ((0.45, 0.3, 0.2, 0.12), (0.25, 0.15, 0.08, 0.04))
"""Quantiles in turns: near examples are told apart by high ones, low ones let few units do."""
ROUNDS_AT_EACH, DRAWN_AT_ONCE = 8, 60
NEARLY_OFF, VANISHED, OFF_ROUNDINGS = (0.02, 3e-3, 3e-4), 1e-4, 20.0
"""In root mean squares of `U q`, up to which a unit counts as off, in turns and in the end; and in
standard deviations of its rounding, if that is more."""
HELD_BY = 3
"""Units that are left out before a direction is judged."""
LEAST_ALONE = 0.01
"""Least singular value but one of its units' rows then, relative: examples have 0.03 to 0.8, what
is not held by its units 1e-5."""
SAME_DIRECTION = 1e-5
"""Of two directions, 1 less their cosine."""
TOGETHER = 1e-4
"""Angle that `HELD_BY + 1` units of a plane lie within where they vanish together."""


def off_units(equation: MaskEquation, q: Array, near: float = VANISHED) -> NDArray[np.bool_]:
    """Return which units a unit direction vanishes at, (D,)."""
    noise = equation.sigma * float(np.linalg.norm(q / equation.values))
    limit = max(near / len(equation.left) ** 0.5, OFF_ROUNDINGS * noise)
    return np.asarray(np.abs(equation.left @ q) < limit)


def keep(equation: MaskEquation, q: Array, found: list[Array]) -> None:
    """Add the direction that q is near to, if it vanishes at many units and is new."""
    least = equation.size + HELD_BY
    for near in NEARLY_OFF:
        off = off_units(equation, q, near)
        if off.sum() < least:
            return
        q = np.linalg.svd(equation.left[off], full_matrices=False)[2][-1]
    off = off_units(equation, q)
    if off.sum() < least or _alone(equation.left[off], len(off)) < LEAST_ALONE:
        return
    if all(abs(float(one @ q)) < 1 - SAME_DIRECTION for one in found):
        found.append(q)


def _alone(rows: Array, units: int) -> float:
    """Return how well rows leave one direction alone, the best few of them left out."""
    second = np.linalg.svd(rows, full_matrices=False)[2][-2]
    kept = rows[np.argsort(np.abs(rows @ second))[:-HELD_BY]]
    least = np.linalg.svd(kept, compute_uv=False)[-2]
    return float(least / (len(kept) / units) ** 0.5)


def sharpened_draws(left: Array, generator: torch.Generator) -> Iterator[Array]:
    """Yield where random directions lead that are made to vanish at many rows."""
    for schedule in SCHEDULES:
        shape = (DRAWN_AT_ONCE, left.shape[1])
        q = torch.randn(*shape, generator=generator, dtype=torch.float64).numpy()
        yield from sharpened(left, q, schedule, ROUNDS_AT_EACH)


def sharpened(left: Array, q: Array, quantiles: Sequence[float], rounds: int) -> Array:
    """Return where directions (N, R) lead that are made to vanish at many rows (D, R).

    Args:
        left: the rows.
        q: to start from.
        quantiles: of what is left at the rows, s in turns.
        rounds: with each.
    """
    size = left.shape[1]
    products = (left[:, :, None] * left[:, None, :]).reshape(len(left), -1)
    for quantile in np.repeat(quantiles, rounds):
        parts = np.abs(q @ left.T)
        scale = np.quantile(parts, quantile, axis=1, keepdims=True) + 1e-12
        weight = 1 / (1 + (parts / scale) ** 2)
        q = np.linalg.eigh((weight @ products).reshape(-1, size, size))[1][:, :, 0]
    return q


def behind(equation: MaskEquation, one: Array, generator: torch.Generator) -> Iterator[Array]:
    """Yield directions that are found among the units where a known one is off."""
    off = off_units(equation, one)
    others = np.linalg.svd(one[None])[2][1:]
    rows = equation.left[off] @ others.T
    if len(rows) < 2 * equation.size:
        return
    basis, triangle = np.linalg.qr(rows)
    if np.abs(np.diag(triangle)).min() < VANISHED * np.abs(np.diag(triangle)).max():
        return
    for q in sharpened_draws(basis, generator):
        other = np.linalg.solve(triangle, q) @ others
        plane = np.stack([one, other / np.linalg.norm(other)])
        rest = equation.left[~off] @ plane.T
        sizes = np.linalg.norm(rest, axis=1)
        rest = rest[sizes > NEARLY_OFF[1] * sizes.max(initial=0.0)]
        angles = np.sort(np.arctan2(rest[:, 0], rest[:, 1]) % np.pi)
        if len(angles) <= HELD_BY:
            continue
        apart = angles[HELD_BY:] - angles[:-HELD_BY]
        at = int(apart.argmin())
        if apart[at] < TOGETHER:
            angle = float(np.median(angles[at : at + HELD_BY + 1]))
            yield np.array([np.cos(angle), -np.sin(angle)]) @ plane
