"""From directions to inputs and back: what is found leads to what is missing.

With `D_1 = Σ_b δ_b x_bᵀ = U S V` and `δ_b = U q_b`, R independent directions give all inputs: they
are the rows of `Q⁻ᵀ S V`. An input says by itself, at any weights, where its unit is off; and there
its direction vanishes. So each says what the other is:

* An input is orthogonal to all directions but its own (in the coordinates `S V`). Those found so
  leave few dimensions to what is missing, and of one alone its input, whatever its direction is.
  Its mask there starts the search for its direction; at first, random ones.
* A direction that isn't an example's, in place of one, bends another example's input, so that its
  mask doesn't agree any more.

The weights of each step aren't known, and masks change: so an input is tried at several of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.masks.equation import MaskEquation
from attacks.unrolled.vanishing import behind, keep, off_units, sharpened, sharpened_draws
from attacks.victim.gradients import Array

PASSES, PASSES_BEHIND = 5, (2, 4)
"""Over random starts, at most; and which also look behind the directions that are found."""
ROUNDS, ROUNDS_IDLE = 12, 2
"""Of completion in each pass, at most; and without news, in a row."""
INDEPENDENT = 0.01
"""Least singular value of directions that are all of the examples'."""
LEAST_EXCHANGED = 0.01
"""Of a chosen direction in another, relative to the largest, from which they may be exchanged."""
MASK_UNITS = 2
"""Units where an input says off, for each example, at least: fewer leave no direction alone."""
QUANTILES, AT_EACH = (0.9, 0.8, 0.6, 0.4), 5
"""Of what is left at a mask's units, by which its wrong ones are left out in turns."""


@dataclass(frozen=True, eq=False)
class Duality:
    """The two sides of an update's first layer.

    Args:
        equation: of the layer, whose activation is 0 below 0.
        outputs: from the coordinates `S V` to its live units' outputs at several weights, (A, R,
            D).
        bias: the bias's input in these coordinates, (R,); None without a bias.
    """

    equation: MaskEquation
    outputs: Array
    bias: Array | None

    @classmethod
    def of(cls, equation: MaskEquation, weights: Sequence[Array]) -> Duality:
        """Take an equation, and weights (D', n) of all units that masks are tried at."""
        rows = equation.values[:, None] * equation.right * equation.columns
        outputs = np.stack([rows @ weight[equation.live].T for weight in weights])
        return cls(equation, outputs, rows[:, -1] if equation.source.has_bias else None)

    def search(self, generator: torch.Generator) -> tuple[Array, list[int]]:
        """Return unit directions q (N, R) that vanish at many units, and which are the examples'.

        These are as many as could be found, at most R.
        """
        found: list[Array] = []
        chosen: list[int] = []
        for turn in range(PASSES):
            starts = chain.from_iterable(
                behind(self.equation, one, generator) for one in found[:] if turn in PASSES_BEHIND
            )
            for q in chain(starts, sharpened_draws(self.equation.left, generator)):
                keep(self.equation, q, found)
            chosen = self._completed(found, generator)
            if len(chosen) == self.equation.size:
                break
        return np.array(found).reshape(-1, self.equation.size), chosen

    def _completed(self, found: list[Array], generator: torch.Generator) -> list[int]:
        """Add what the chosen ones' inputs, and those left to missing ones, lead to."""
        chosen, fruitless = self.chosen(found), 0
        for _ in range(ROUNDS):
            before = len(found)
            for q in self._proposals([found[i] for i in chosen], generator):
                keep(self.equation, q, found)
            if len(found) > before:
                chosen, fruitless = self.chosen(found), 0
                continue
            fruitless += 1
            if len(chosen) == self.equation.size or fruitless == ROUNDS_IDLE:
                break
        return chosen

    def chosen(self, found: Sequence[Array]) -> list[int]:
        """Return which directions are independent, and the likeliest to be the examples'.

        First those that vanish at most units; then they are exchanged for others while that lets
        inputs agree better with them.
        """
        if not found:
            return []
        q = np.array(found)
        off = np.array([off_units(self.equation, one) for one in found])
        chosen: list[int] = []
        for index in np.argsort(-off.sum(axis=1), kind="stable").tolist():
            values = np.linalg.svd(q[[*chosen, index]], compute_uv=False)
            if len(chosen) < self.equation.size and values[-1] > INDEPENDENT:
                chosen.append(index)
        if len(chosen) < self.equation.size:
            return chosen
        best = self._agreement(q[chosen], off[chosen])
        while True:
            trials = exchanges(q, chosen)
            agreed = [self._agreement(q[trial], off[trial]) for trial in trials]
            if not trials or max(agreed) <= best:
                return chosen
            best, chosen = max(agreed), trials[int(np.argmax(agreed))]

    def _inputs(self, q: Array) -> Array:
        """Return the inputs in their coordinates, (R, R), with a bias of the right sign."""
        inputs = np.asarray(np.linalg.inv(q).T)
        return inputs if self.bias is None else inputs * np.sign(inputs @ self.bias)[:, None]

    def _agreement(self, q: Array, off: NDArray[np.bool_]) -> float:
        """Return how well inputs agree with directions (R, R) and where these vanish (R, D).

        The sum of `-log` of the shares of units where they don't, each at its best weights.
        """
        agreed = ((self._inputs(q) @ self.outputs < 0) == off).mean(axis=2)
        if self.bias is None:
            agreed = np.maximum(agreed, 1 - agreed)
        return -float(np.log(1 - agreed.max(axis=0) + 1 / off.shape[1]).sum())

    def _proposals(self, known: Sequence[Array], generator: torch.Generator) -> Iterator[Array]:
        """Yield directions that inputs say: those of known directions, and what is left to others.

        Of these a random basis is drawn.
        """
        size, left = self.equation.size, self.equation.left
        q = np.array(known).reshape(-1, size)
        missing = size - len(q)
        rest = np.linalg.svd(q, full_matrices=True)[2][len(q) :] if len(q) else np.eye(size)
        drawn = torch.randn(missing, missing, generator=generator, dtype=torch.float64).numpy()
        inputs = self._inputs(np.vstack([q, np.linalg.qr(drawn)[0] @ rest]))
        signs = (1.0,) if self.bias is not None else (1.0, -1.0)
        for outputs in (inputs @ self.outputs).reshape(-1, len(left)):
            for sign in signs:
                rows = left[sign * outputs < 0]
                if len(rows) > MASK_UNITS * size:
                    least = np.linalg.svd(rows, full_matrices=False)[2][-1:]
                    yield sharpened(rows, least, QUANTILES, AT_EACH)[0]


def exchanges(q: Array, chosen: Sequence[int]) -> list[list[int]]:
    """Return choices of as many directions (N, R) that differ in one, and stay independent."""
    trials = []
    for other in sorted(set(range(len(q))) - set(chosen)):
        parts = np.abs(np.linalg.solve(q[list(chosen)].T, q[other]))
        places = np.flatnonzero(parts > LEAST_EXCHANGED * parts.max()).tolist()
        trials += [[*chosen[:at], other, *chosen[at + 1 :]] for at in places]
    return trials
