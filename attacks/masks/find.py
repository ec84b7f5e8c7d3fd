"""Step 4: all pairs of a layer, each leaving the rest easier to find.

Random starts of three kinds (`starts`) are drawn as each kind has lately found; where they find
nothing new, they are annealed first within the space that the masks found leave (`leftover`). Of a
single one that is missing, the input is known, and so is its mask.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from attacks.dense.network import FullyConnected
from attacks.masks.annealed import COLD, HOT, LUKEWARM, WARM, anneal, expected_masks, expected_pairs
from attacks.masks.equation import MaskEquation
from attacks.masks.leftover import leftover_space
from attacks.masks.lifted import lifted_directions
from attacks.masks.polish import Pair, polish
from attacks.masks.starts import Kind, Starts
from attacks.victim.gradients import Array

FRUITLESS, BARREN = 30, 20
"""Rounds in a row that find nothing new before the search ends, and while nothing is found."""
STALLED = 3
"""The same, before starts are annealed within what the masks found leave."""
MOST_MISSING = 128
"""Examples missing up to which it is asked where those found leave them: the linear programs' cost
grows with their square, and beyond it exceeded that of all random starts."""
ROUGH_MISFIT = 0.1
"""Misfit of a start's end up to which it is polished."""
MEMORY, LEAST_EXPECTED = 0.7, 0.02
"""Share of a kind's past in what it is expected to find, and how much at least."""
SAME_PAIR = 1e-2
"""Distance of a q from the span of those found below which it isn't new: they are independent."""


def find_pairs(
    equation: MaskEquation, network: FullyConnected, index: int, generator: torch.Generator
) -> tuple[Pair, ...]:
    """Propose, polish and accept in turns, until all R pairs are found or nothing more comes.

    Args:
        equation: of the layer with that index.
        network: ends with the last layer.
        index: of the layer.
        generator: draws starts.
    """
    found: list[Pair] = []
    shared: list[Pair] = []  # what two examples' common mask leaves open
    _lift(equation, generator, found, shared, is_quick=True)
    starts = Starts(equation, network, index, generator)
    expected = np.ones(len(Kind))
    fruitless = 0
    leftover: MaskEquation | None = None
    while len(found) < equation.size and fruitless < (FRUITLESS if found else BARREN):
        before = len(found)
        kind = Kind(int(torch.multinomial(torch.from_numpy(expected), 1, generator=generator)))
        if found and fruitless == STALLED and equation.size - before <= MOST_MISSING:
            leftover = equation.within(leftover_space(equation, found, starts.kept))
        if found and before == equation.size - 1 and not fruitless:
            ends = expected_pairs(equation, starts.of_last(found))
        elif fruitless < STALLED or leftover is None or fruitless % 2 == 0:
            ends = anneal(
                equation, starts.draw(kind, found), COLD if kind is Kind.TYPICAL_IMAGES else WARM
            )
        else:
            ends = _annealed_within(equation, leftover, starts.draw(kind, found))
        _accept(found, shared, _polished(equation, *ends))
        new = len(found) - before
        fruitless = 0 if new else fruitless + 1
        if fruitless <= STALLED:
            expected[kind] = max(MEMORY * expected[kind] + (1 - MEMORY) * new, LEAST_EXPECTED)
    _lift(equation, generator, found, shared, is_quick=False)
    return tuple(found + _independent(found, shared)[: equation.size - len(found)])


def _lift(
    equation: MaskEquation,
    generator: torch.Generator,
    found: list[Pair],
    shared: list[Pair],
    *,
    is_quick: bool,
) -> None:
    """Add what the closed form gives."""
    if len(found) == equation.size:
        return
    for directions in lifted_directions(equation, generator, is_quick=is_quick):
        _accept(found, shared, (pair for q in directions for pair in polish(equation, q)))
        if len(found) == equation.size:
            return


def _annealed_within(
    equation: MaskEquation, part: MaskEquation, masks: Array
) -> tuple[Array, Array]:
    """Anneal masks (N, D) in a part of the space first, and from there in all of it."""
    q, t = anneal(part, masks, HOT)
    return anneal(equation, expected_masks(part, q, t, float(HOT[-1])), LUKEWARM)


def _polished(equation: MaskEquation, q: Array, t: Array) -> Iterator[Pair]:
    """Polish those of pairs (N, R) and (N, r) that are near an example, the nearest first."""
    fitted, w = q @ equation.left.T, t @ equation.targets.T
    off = np.minimum(np.abs(fitted - w), np.abs(fitted - equation.low * w))
    misfit = np.linalg.norm(off, axis=1)
    for one in np.argsort(misfit, kind="stable"):
        if misfit[one] > max(ROUGH_MISFIT, 2 * equation.precision):
            return
        if q[one].any():  # of a mask that is off everywhere, nothing is left
            yield from polish(equation, q[one], t[one])


def _accept(found: list[Pair], shared: list[Pair], candidates: Iterator[Pair]) -> None:
    """Add the candidates that are examples, and new; to `shared` where the mask isn't theirs alone.

    So a span is complete, and the other examples' inputs come out, where two have one mask.
    """
    for pair in candidates:
        kept = found if pair.is_clear else shared
        if pair.is_example and np.linalg.norm(_outside(kept, pair.q)) > SAME_PAIR:
            kept.append(pair)


def _independent(found: list[Pair], others: list[Pair]) -> list[Pair]:
    """Return those of other pairs that are new to those found, and to each other."""
    kept: list[Pair] = []
    for pair in others:
        if np.linalg.norm(_outside(found + kept, pair.q)) > SAME_PAIR:
            kept.append(pair)
    return kept


def _outside(found: list[Pair], q: Array) -> Array:
    """Return the part of q (R,) that is orthogonal to all found."""
    if not found:
        return q
    basis = np.linalg.qr(np.array([pair.q for pair in found]).T)[0]
    return np.asarray(q - basis @ (basis.T @ q))
