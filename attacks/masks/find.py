"""Step 4: all pairs of a layer, each leaving the rest easier to find.

Random starts come in three kinds. With F an orthonormal basis of the q that are orthogonal to those
found, `Fᵀ S V` has rows spanned by the inputs of the examples that are *not* found (the dual of
"`δ_b = U q_b` is peeled off"). A combination of these, sent forward through the layer, turns on
about the units that its largest example does: the fewer are missing, the nearer.

* **images**: a random combination, all directions of that space alike;
* **typical images**: one in which they are as large as in the gradient, as in images that are much
  alike; annealed less, as its mask is nearly right where few are missing or all are alike;
* **classes**: one that the gradient itself makes, `wᵀ G_w` with w what the layers above hand down
  for a random class, thinned out at random: examples of that class weigh most in it. Its mask and w
  together are the start.

Which kind is drawn next depends on what each has lately found.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import torch

from attacks.dense.network import FullyConnected
from attacks.masks.annealed import COLD, WARM, anneal, expected_masks
from attacks.masks.equation import MaskEquation
from attacks.masks.lifted import lifted_directions
from attacks.masks.polish import Pair, polish
from attacks.victim.gradients import Array

STARTS_AT_ONCE = 16
"""Starts annealed at a time."""
FRUITLESS, BARREN = 60, 20
"""Rounds in a row that find nothing new before the search ends, and while nothing is found."""
CLASS_SHARE = 0.1
"""Of the units that a class's combination is made from."""
LIKELY_ON = 0.9
"""Probability that a unit is on where a combination of images turns it on."""
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
    while len(found) < equation.size and fruitless < (FRUITLESS if found else BARREN):
        kind = Kind(int(torch.multinomial(torch.from_numpy(expected), 1, generator=generator)))
        masks = starts.draw(kind, found)
        before = len(found)
        temperatures = COLD if kind is Kind.TYPICAL_IMAGES else WARM
        _accept(found, shared, _annealed(equation, masks, temperatures))
        new = len(found) - before
        fruitless = 0 if new else fruitless + 1
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


def _annealed(equation: MaskEquation, masks: Array, temperatures: Array) -> Iterator[Pair]:
    """Polish the ends of starts (N, D) that are near an example, the nearest first."""
    q, t = anneal(equation, masks, temperatures)
    fitted, w = q @ equation.left.T, t @ equation.targets.T
    off = np.minimum(np.abs(fitted - w), np.abs(fitted - equation.low * w))
    misfit = np.linalg.norm(off, axis=1)
    for one in np.argsort(misfit, kind="stable"):
        if misfit[one] > max(ROUGH_MISFIT, 2 * equation.precision):
            return
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


class Kind(IntEnum):
    """What starts are made from."""

    IMAGES = 0
    TYPICAL_IMAGES = 1
    CLASSES = 2


class Starts:
    """Draws masks to start from.

    Args:
        equation: of the layer with that index.
        network: ends with the last layer.
        index: of the layer.
        generator: draws.
    """

    def __init__(
        self,
        equation: MaskEquation,
        network: FullyConnected,
        index: int,
        generator: torch.Generator,
    ) -> None:
        self.equation, self.above = equation, network.layers[index + 1 :]
        self.generator = generator
        self.kept = network.kept[index] if network.kept else 1.0
        self.outputs = (equation.source.weight * equation.columns).T
        """(n, D): from the layer's whitened inputs to its outputs."""

    def draw(self, kind: Kind, found: list[Pair]) -> Array:
        """Return masks (N, D)."""
        frame = np.eye(self.equation.size)
        if found:
            q = np.array([pair.q for pair in found])
            frame = np.linalg.qr(q.T, mode="complete")[0][:, len(found) :]
        if kind is Kind.CLASSES:
            return self._of_classes(frame)
        return self._of_images(frame, is_typical=kind is Kind.TYPICAL_IMAGES)

    def _of_images(self, frame: Array, *, is_typical: bool) -> Array:
        equation = self.equation
        rest = (frame.T * equation.values) @ equation.right
        if not is_typical:
            rest = np.linalg.svd(rest, full_matrices=False)[2]
        inputs = self._normal(STARTS_AT_ONCE, len(rest)) @ rest
        if equation.source.has_bias:  # its own input is positive
            inputs *= np.where(inputs[:, -1:] < 0, -1, 1)
        return np.where(inputs @ self.outputs > 0, LIKELY_ON * self.kept, 1 - LIKELY_ON)

    def _of_classes(self, frame: Array) -> Array:
        equation = self.equation
        w = self._handed_down()[:, equation.live] / equation.rows
        thin = w * (self._uniform(*w.shape) < CLASS_SHARE)
        inputs = (((thin @ equation.left) @ frame @ frame.T) * equation.values) @ equation.right
        masks = (inputs @ self.outputs > 0).astype(np.float64)
        t = w @ equation.targets
        w = t @ equation.targets.T
        q = (np.where(masks > 0, self.kept, equation.low) * w) @ equation.left
        return expected_masks(equation, q, t, float(WARM[0]))

    def _handed_down(self) -> Array:
        """Return what comes down from the logits for random classes and masks, (N, m)."""
        last = self.above[-1].weights
        classes = torch.randint(len(last), (STARTS_AT_ONCE,), generator=self.generator).numpy()
        down = last.mean(axis=0) - last[classes]
        for layer in reversed(self.above[:-1]):
            down = (down * (self._uniform(*down.shape) < 0.5)) @ layer.weights
        return np.asarray(down)

    def _normal(self, *shape: int) -> Array:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).numpy()

    def _uniform(self, *shape: int) -> Array:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).numpy()
