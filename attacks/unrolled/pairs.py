"""Each example's part of the first layer's update, out of all steps at once.

Behind a ReLU it vanishes where the example is off (`attacks.unrolled.dual`), and that is exact.
Behind a leaky ReLU no unit is off. There the two-valued equations of `attacks.masks` are
held to at most units, from starts for one step at the mean weights: a unit that an example turns on
or off on the way is at neither value, and weighted alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from attacks.dense.network import FullyConnected
from attacks.masks.annealed import WARM, anneal
from attacks.masks.equation import MaskEquation
from attacks.masks.lifted import lifted_directions
from attacks.masks.polish import Pair
from attacks.masks.starts import Kind, Starts
from attacks.unrolled.vanishing import off_units
from attacks.victim.gradients import Array

ROBUST_ROUNDS = 15
ROBUST_SCALE = 1.5
"""s, in medians of the absolute residuals."""
STEADY_SHARE = 0.8
"""Of the units, those that fit best, by which a pair is judged."""
STEADY_MISFITS = (0.15, 0.25)
"""Of these, relative: up to which a pair may be an example's, and where that leaves some out. True
ones mostly have 0.01 to 0.06 after five steps at 0.1, some 0.2; what is false shows in the end."""
NEW_PAIR = 0.02
"""Distance of a q from the span of those found, from which it is another's."""
WITHOUT_NEWS = 12
"""Rounds of starts in a row that find nothing new before the search ends."""


def steady_pairs(
    equation: MaskEquation, chain: FullyConnected, generator: torch.Generator
) -> list[Pair]:
    """Return what may be the examples' pairs of a layer whose activation is no ReLU.

    Args:
        equation: of the first layer of the chain.
        chain: ends with the last layer.
        generator: draws starts.
    """
    found: list[Pair] = []
    for most_misfit in STEADY_MISFITS:
        _search(equation, chain, generator, found, most_misfit)
        if len(found) == equation.size:
            break
    return found


def _search(
    equation: MaskEquation,
    chain: FullyConnected,
    generator: torch.Generator,
    found: list[Pair],
    most_misfit: float,
) -> None:
    """Add pairs of a leaky ReLU's, from random starts and from the closed form."""
    starts = Starts(equation, chain, 0, generator)
    fruitless = 0
    while len(found) < equation.size and fruitless < WITHOUT_NEWS:
        before = len(found)
        kind = Kind(fruitless % len(Kind))
        q, t = anneal(equation, starts.draw(kind, found), WARM)
        _accept(found, (robust_pair(equation, *one) for one in zip(q, t, strict=True)), most_misfit)
        fruitless = 0 if len(found) > before else fruitless + 1
    for directions in lifted_directions(equation, generator):
        if len(found) == equation.size:
            return
        _accept(found, (robust_pair(equation, one) for one in directions), most_misfit)


def single_pair(equation: MaskEquation) -> Pair:
    """Return a single example's pair: its input's direction is known, and so are its masks."""
    source = equation.source
    outputs = (equation.right[0] * equation.columns) @ source.weight.T
    pairs = []
    for sign in (1, -1):
        slopes = np.where(sign * outputs > 0, 1.0, equation.low)[:, None]
        t = np.linalg.lstsq(slopes * equation.targets, equation.left[:, 0], rcond=None)[0]
        pairs.append(robust_pair(equation, np.ones(1), np.asarray(t, dtype=np.float64)))
    return min(pairs, key=lambda pair: pair.misfit)


def _accept(found: list[Pair], candidates: Iterable[Pair], most_misfit: float) -> None:
    """Add the candidates that may be an example's, and are none of those found."""
    for pair in candidates:
        if len(found) == len(pair.q):
            return
        if pair.misfit <= most_misfit and _is_new(pair, found):
            found.append(pair)


def _is_new(pair: Pair, found: Sequence[Pair]) -> bool:
    """Say whether a pair is no combination of those found."""
    known = np.array([one.q for one in found]).reshape(-1, len(pair.q))
    outside = pair.q - known.T @ np.linalg.lstsq(known.T, pair.q, rcond=None)[0]
    return bool(np.linalg.norm(outside) > NEW_PAIR)


def vanishing_pair(equation: MaskEquation, q: Array) -> Pair:
    """Return a direction that vanishes at some units as a pair: the others are on."""
    is_on = ~off_units(equation, q)
    fitted = equation.left @ q
    targets, parts = equation.targets[is_on], fitted[is_on]
    weight: Array = np.ones(len(parts))
    for _ in range(ROBUST_ROUNDS):
        t = np.asarray(np.linalg.lstsq(weight[:, None] * targets, weight * parts, rcond=None)[0])
        rest = np.abs(parts - targets @ t)
        weight = 1 / np.hypot(1, rest / (ROBUST_SCALE * np.median(rest) + 1e-300))
    misfit = float(np.median(rest) / max(np.median(np.abs(parts)), 1e-300))
    return Pair(q, t, is_on, misfit, STEADY_MISFITS[-1], is_clear=True)


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
