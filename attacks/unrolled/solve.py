"""From a rough start to the examples that leave exactly this update, kinks and schedule and all.

Where each example's direction is known (`attacks.unrolled.pairs`), what is left is a scale at most,
a label, and which steps took it: first these alone, then everything. Where a wrong mask bends what
every later step sees, Gauss-Newton ends before the examples are reached. Then it starts again with
activations that are bent over a width around 0, which shrinks: masks change with the unknowns, and
the path to the exact activation is without kinks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from attacks.unrolled.models import model_of
from attacks.unrolled.order import by_masks, by_training, with_shares
from attacks.unrolled.peel import peeled
from attacks.unrolled.problem import Update
from attacks.unrolled.refine import Effort, Equations, Model, Refined, refine
from attacks.unrolled.simulation import Unknowns

WIDE, NARROW = (0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3), (0.03, 0.01, 3e-3, 1e-3, 3e-4)
PATHS = ((True, ()), (True, WIDE), (False, NARROW), (False, WIDE))
"""Whether directions are fixed at first, and widths of the bend in turns, relative to the first
layer's outputs; none at all: no bend."""
BENT_STEPS, FREE_STEPS, PLACED_STEPS = 4, 15, 12
"""Gauss-Newton steps at each width; with the shares free; and with the directions fixed."""
SCHEDULES_TRIED = 4
"""In turns, each from where the one before ended."""
NEAR_MISFIT, ORDERED_MISFIT = 0.1, 0.01
"""Residuals relative to the update, root mean square, from which on all is refined; and where the
schedule isn't told: a wrong one leaves 0.02 and more."""
ONCE_MORE = 2.5e10
"""Effort beyond all that may be spent, on what is nearly right."""
MET = 10.0
"""Median residual, in units of rounding, at which nothing more is tried."""


def solve(
    update: Update, starts: Sequence[Unknowns], effort: Effort, *, is_tied: bool, is_placed: bool
) -> Refined:
    """Refine starts until an update is the one that was sent, or nothing is left to try.

    Args:
        update: as it was sent.
        starts: the likeliest first.
        effort: that may be spent.
        is_tied: whether labels are equal in all but their two largest entries.
        is_placed: whether the starts' inputs have the right directions.
    """
    search = _Search(update, Equations.of(update), effort, is_tied)
    best: Refined | None = None
    for is_fixed, bends in PATHS:
        if best is not None and not (is_fixed or update.timetable.is_told):
            break  # which step took what is found with the directions fixed, or not at all
        for start in starts:
            found = search.placed(start, bends) if is_placed and is_fixed else None
            if found is None or found.misfit < search.near:
                found = search.whole(found.client if found else start, () if found else bends)
            if best is None or found.typical < best.typical:
                best = found
            if best.typical < MET:
                return best
            if effort.is_spent:
                return search.again(best, is_placed=is_placed)
    assert best is not None
    return search.again(best, is_placed=is_placed)


@dataclasses.dataclass(frozen=True, eq=False)
class _Search:
    update: Update
    equations: Equations
    effort: Effort
    is_tied: bool

    @property
    def near(self) -> float:
        """Misfit from which on all is refined."""
        return NEAR_MISFIT if self.update.timetable.is_told else ORDERED_MISFIT

    def placed(self, start: Unknowns, bends: Sequence[float]) -> Refined:
        """Find scales, labels and schedule of inputs whose directions are known."""
        timetable = self.update.timetable
        if timetable.is_one_epoch and not bends:
            start, _ = peeled(self.update, start)
            found = refine(self.equations, self._model(start, is_placed=True), self.effort)
            if found.misfit < self.near:
                return found
            start = dataclasses.replace(start, shares=timetable.shares)
        client = self._bent(start, bends, is_placed=True)
        if timetable.is_told:
            return refine(self.equations, self._model(client, is_placed=True), self.effort)
        reached: list[Refined] = []
        for way in (timetable, by_masks(self.update, client.inputs)):
            reached += self._ordered(client, with_shares(client, self.update, way))
            if reached[-1].misfit < ORDERED_MISFIT or self.effort.is_spent:
                break
        return min(reached, key=lambda end: end.misfit)

    def _ordered(self, start: Unknowns, client: Unknowns) -> Iterator[Refined]:
        """Find the schedule too, in turns: by shares that are free, and by masks where that ended.

        Once it is right, labels are found from the start that weren't from where a wrong one led.
        """
        for turn in range(SCHEDULES_TRIED):
            free = self._model(client, is_placed=True, is_free=True)
            client = refine(self.equations, free, self.effort, FREE_STEPS).client
            nearest = self.update.timetable.nearest(client.shares)
            trials = [dataclasses.replace(one, shares=nearest.shares) for one in (client, start)]
            models = [self._model(one, is_placed=True) for one in trials]
            ends = [refine(self.equations, one, self.effort, PLACED_STEPS) for one in models]
            reached = min(ends, key=lambda end: end.misfit)
            yield reached
            if reached.misfit < ORDERED_MISFIT or self.effort.is_spent:
                return
            if turn % 2:
                nearest = by_training(self.update, reached.client)
            client = with_shares(reached.client, self.update, nearest)

    def whole(self, start: Unknowns, bends: Sequence[float]) -> Refined:
        """Refine all that is unknown."""
        client = self._bent(start, bends, is_placed=False)
        return refine(self.equations, self._model(client, is_placed=False), self.effort)

    def again(self, found: Refined, *, is_placed: bool) -> Refined:
        """Refine once more what is nearly right: damped anew, steps are long enough for a kink."""
        if not found.misfit < ORDERED_MISFIT:
            return found
        model = self._model(found.client, is_placed=is_placed)
        again = refine(self.equations, model, Effort(ONCE_MORE))
        return min(found, again, key=lambda end: end.typical)

    def _bent(self, start: Unknowns, bends: Sequence[float], *, is_placed: bool) -> Unknowns:
        size = float((start.inputs @ self.update.simulation.weights[0].T).square().mean().sqrt())
        for bend in bends:
            bent = dataclasses.replace(self.equations.simulation, bend=bend * size)
            smooth = dataclasses.replace(self.equations, simulation=bent)
            model = self._model(start, is_placed=is_placed)
            start = refine(smooth, model, self.effort, BENT_STEPS).client
        return start

    def _model(self, start: Unknowns, *, is_placed: bool, is_free: bool = False) -> Model:
        ways = self.update.timetable.ways() if is_free else None
        return model_of(self.update, start, is_tied=self.is_tied, ways=ways, is_placed=is_placed)
