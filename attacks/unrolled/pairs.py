"""Each example's part of the first layer's update, out of all steps at once.

A unit that is off for an example in all steps that take it has nothing of it: with `D_1 = U S V`,
`δ_b = U q_b` and `u_i·q_b = 0`, but for rounding, whatever the weights above have become, however
many steps there were, and whichever took the example. Two units in five are, and other
directions of the span vanish at few: so where such a direction starts near enough, weights
`1 / (1 + (u_i·q / s)²)` with s a low quantile of `|u_i·q|` lead to `q_b` itself, up to rounding.
That a direction is an example's is seen by how many units it vanishes at, and that these leave no
other direction. Starts are those of `attacks.masks`, for one step at the mean weights.

Behind a leaky ReLU no unit is off. There the two-valued equations of `attacks.masks` are held to at
most units: one that an example turns on or off on the way is at neither value, and weighted alike.
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
VANISHING_ROUNDS, QUANTILES = 10, (0.45, 0.3)
"""Rounds at each s: near examples are told apart by a high one, a low one lets few units do."""
OFF = 0.02
"""In root mean squares of `U q`, up to which it vanishes at a unit."""
LEAST_OFF, LEAST_ALONE = (0.3, 0.15), 0.2
"""Share of the units at which an example's direction vanishes, at least, and where that leaves some
out; least singular value of these units' rows but one, relative. Examples have 0.4 to 0.65 and 0.6
to 0.8, what lies between two 0.25 to 0.45 and 0.06 to 0.16."""
NEW_PAIR = 0.05
"""Distance of a q from the span of those found, from which it is another's."""
WITHOUT_NEWS = 12
"""Rounds of starts in a row that find nothing new before the search ends."""


def steady_pairs(
    equation: MaskEquation, chain: FullyConnected, generator: torch.Generator
) -> list[Pair]:
    """Return the pairs of examples, all R or as many as are found.

    Args:
        equation: of the first layer of the chain.
        chain: ends with the last layer.
        generator: draws starts.
    """
    if equation.size == 1:  # there is nothing to tell apart
        return [_single_pair(equation)]
    found: list[Pair] = []
    for strictness in range(len(STEADY_MISFITS)):
        _search(equation, chain, generator, found, strictness)
        if len(found) == equation.size:
            break
    return found


def _search(
    equation: MaskEquation,
    chain: FullyConnected,
    generator: torch.Generator,
    found: list[Pair],
    strictness: int,
) -> None:
    """Add pairs, from random starts and from the closed form."""
    starts = Starts(equation, chain, 0, generator)
    fruitless = 0
    while len(found) < equation.size and fruitless < WITHOUT_NEWS:
        before = len(found)
        kind = Kind(fruitless % len(Kind))
        q, t = anneal(equation, starts.draw(kind, found), WARM)
        _accept(equation, found, _sharpened(equation, q, t), strictness)
        fruitless = 0 if len(found) > before else fruitless + 1
    for directions in lifted_directions(equation, generator):
        if len(found) == equation.size:
            return
        _accept(equation, found, _sharpened(equation, np.array(directions), None), strictness)


def _sharpened(equation: MaskEquation, q: Array, t: Array | None) -> Iterable[Pair]:
    """Yield the pairs that directions (N, R) lead to; t (N, r) is asked of leaky ReLUs alone."""
    if equation.low == 0:
        yield from (vanishing_pair(equation, one) for one in vanishing(equation, q))
        return
    for index, one in enumerate(q):
        yield robust_pair(equation, one, None if t is None else t[index])


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
    equation: MaskEquation, found: list[Pair], candidates: Iterable[Pair], strictness: int
) -> None:
    """Add the candidates that are examples, by a first or a second limit, and new."""
    for pair in candidates:
        if len(found) == equation.size:
            return
        known = np.array([one.q for one in found]).reshape(-1, equation.size)
        outside = pair.q - known.T @ np.linalg.lstsq(known.T, pair.q, rcond=None)[0]
        is_steady = pair.misfit <= STEADY_MISFITS[strictness]
        if equation.low == 0:
            is_steady = pair.is_clear and float(np.mean(~pair.is_on)) >= LEAST_OFF[strictness]
        if is_steady and np.linalg.norm(outside) > NEW_PAIR:
            found.append(pair)


def vanishing(equation: MaskEquation, q: Array) -> Array:
    """Return where directions (N, R) lead that are made to vanish at many units, (N, R)."""
    left = equation.left
    products = (left[:, :, None] * left[:, None, :]).reshape(len(left), -1)
    for quantile in QUANTILES:
        for _ in range(VANISHING_ROUNDS):
            parts = np.abs(q @ left.T)
            size = np.quantile(parts, quantile, axis=1, keepdims=True) + 1e-12
            weight = 1 / (1 + (parts / size) ** 2)
            q = np.linalg.eigh((weight @ products).reshape(len(q), *left.shape[1:] * 2))[1][:, :, 0]
    return q


def vanishing_pair(equation: MaskEquation, q: Array) -> Pair:
    """Return a direction that vanishes at some units as a pair: the others are on.

    It is clear where they leave no other direction.
    """
    left, targets = equation.left, equation.targets
    fitted = left @ q
    is_on = np.abs(fitted) > OFF * np.sqrt(np.mean(fitted**2))
    off = left[~is_on]
    alone = 0.0
    if len(off) >= len(q):
        alone = (
            float(np.linalg.svd(off, compute_uv=False)[-2]) / max(np.mean(~is_on), 1e-300) ** 0.5
        )
    t = np.zeros(targets.shape[1])
    weight = is_on[:, None].astype(np.float64)
    for _ in range(ROBUST_ROUNDS):
        t = np.linalg.lstsq(weight * targets, weight[:, 0] * fitted, rcond=None)[0]
        rest = np.abs(fitted - targets @ t)
        weight = (is_on / np.hypot(1, rest / (ROBUST_SCALE * np.median(rest[is_on]) + 1e-300)))[
            :, None
        ]
    misfit = (
        float(np.median(rest[is_on]) / max(np.median(np.abs(fitted[is_on])), 1e-300))
        if is_on.any()
        else 1.0
    )
    return Pair(q, t, is_on, misfit, STEADY_MISFITS[-1], is_clear=alone >= LEAST_ALONE)


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
