"""Pairs of masks that hold at most units, where steps drift: `attacks.masks`, made robust.

A unit that an example turns on or off on the way is at neither of its two values, and one in
twenty does so in five steps at a learning rate of 0.1. Least squares spread what such units miss
over all; weighted by `1 / (1 + (r / s)²)`, s = 1.5 · median |r|, they drop out, and a pair is as
near as the drift of the others, a hundredth or less.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from attacks.dense.network import FullyConnected
from attacks.masks.annealed import WARM, anneal
from attacks.masks.equation import MaskEquation
from attacks.masks.lifted import lifted_directions
from attacks.masks.polish import Pair
from attacks.masks.starts import Kind, Starts
from attacks.victim.gradients import Array

ROBUST_ROUNDS = 15
ROBUST_SCALE = 1.5
"""s, in medians of the absolute residuals."""
STEADY_SHARE = 0.8
"""Of the units, those that fit best, by which a pair is judged."""
STEADY_MISFITS = (0.15, 0.25)
"""Of these, relative: up to which a pair may be an example's, and where that leaves some out. True
ones mostly have 0.01 to 0.06 after five steps at 0.1, some 0.2; what is false shows in the end."""
NEW_PAIR = 0.05
"""Distance of a q from the span of those found, from which it is another's."""
WITHOUT_NEWS = 12
"""Rounds of starts in a row that find nothing new before the search ends."""


def steady_pairs(
    equation: MaskEquation, chain: FullyConnected, generator: torch.Generator
) -> list[Pair]:
    """Return pairs that hold at most units, all R or as many as are found.

    Args:
        equation: of the first layer of the chain.
        chain: ends with the last layer.
        generator: draws starts.
    """
    if equation.size == 1:  # there is nothing to tell apart
        return [_single_pair(equation)]
    found: list[Pair] = []
    for limit in STEADY_MISFITS:
        _search(equation, chain, generator, found, limit)
        if len(found) == equation.size:
            break
    return found


def _search(
    equation: MaskEquation,
    chain: FullyConnected,
    generator: torch.Generator,
    found: list[Pair],
    limit: float,
) -> None:
    """Add pairs up to a misfit, from the closed form and from random starts."""
    for directions in lifted_directions(equation, generator):
        _accept(equation, found, ((q, None) for q in directions), limit)
    starts = Starts(equation, chain, 0, generator)
    fruitless = 0
    while len(found) < equation.size and fruitless < WITHOUT_NEWS:
        before = len(found)
        kind = Kind(fruitless % len(Kind))
        q, t = anneal(equation, starts.draw(kind, found), WARM)
        _accept(equation, found, zip(q, t, strict=True), limit)
        fruitless = 0 if len(found) > before else fruitless + 1


def _single_pair(equation: MaskEquation) -> Pair:
    """Return a single example's pair: its input's direction is known, and so are its masks."""
    source = equation.source
    outputs = (equation.right[0] * equation.columns) @ source.weight.T
    pairs = []
    for sign in (1, -1):
        slopes = np.where(sign * outputs > 0, 1.0, equation.low)[:, None]
        t = np.linalg.lstsq(slopes * equation.targets, equation.left[:, 0], rcond=None)[0]
        pairs.append(robust_pair(equation, np.ones(1), np.asarray(t, dtype=np.float64)))
    return min(pairs, key=lambda pair: pair.misfit)


def _accept(
    equation: MaskEquation,
    found: list[Pair],
    starts: Iterable[tuple[Array, Array | None]],
    limit: float,
) -> None:
    for q, t in starts:
        if len(found) == equation.size:
            return
        pair = robust_pair(equation, q, t)
        known = np.array([one.q for one in found]).reshape(-1, equation.size)
        outside = pair.q - known.T @ np.linalg.lstsq(known.T, pair.q, rcond=None)[0]
        if pair.misfit <= limit and np.linalg.norm(outside) > NEW_PAIR:
            found.append(pair)


def robust_pair(equation: MaskEquation, q: Array, t: Array | None = None) -> Pair:
    """Sharpen a pair by its own mask and by the units that hold; without t, from q alone."""
    left, targets, low = equation.left, equation.targets, equation.low
    t = 2 / (1 + low) * (targets.T @ (left @ q)) if t is None else t
    for _ in range(ROBUST_ROUNDS):
        fitted, w = left @ q, targets @ t
        is_on = np.abs(fitted - w) < np.abs(fitted - low * w)
        slopes = np.where(is_on, 1.0, low)
        off = np.abs(fitted - slopes * w)
        weight = 1 / np.hypot(1, off / (ROBUST_SCALE * np.median(off) + 1e-300))[:, None]
        basis, triangle = np.linalg.qr(weight * slopes[:, None] * targets)
        parts = weight * left
        rest = parts - basis @ (basis.T @ parts)
        # Of least misfit relative to its own weighted size.
        root: Array = np.linalg.qr(parts)[1]
        least = np.linalg.svd(np.linalg.solve(root.T, rest.T).T, full_matrices=False)[2][-1]
        q = np.linalg.solve(root, least)
        q = q / np.linalg.norm(q)
        t = np.linalg.lstsq(triangle, basis.T @ (parts @ q), rcond=None)[0]
    fitted, w = left @ q, targets @ t
    off = np.minimum(np.abs(fitted - w), np.abs(fitted - low * w))
    steady = np.argsort(off)[: int(STEADY_SHARE * len(off))]
    size = max(float(np.linalg.norm(fitted[steady])), 1e-300)
    misfit = float(np.linalg.norm(off[steady])) / size
    is_on = np.abs(fitted - w) < np.abs(fitted - low * w)
    return Pair(q, t, is_on, misfit, STEADY_MISFITS[-1], is_clear=True)
