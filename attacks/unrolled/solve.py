"""From a rough start to the examples that leave exactly this update, kinks and all.

Where a wrong mask bends what every later step sees, Gauss-Newton ends before the examples are
reached. Then it starts again with activations that are bent over a width around 0, which shrinks:
masks change with the unknowns, and the path to the exact activation is without kinks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from attacks.unrolled.models import model_of
from attacks.unrolled.problem import Update
from attacks.unrolled.refine import Equations, Model, Refined, refine
from attacks.unrolled.simulation import Unknowns

BENDS = ((), (0.03, 0.01, 3e-3, 1e-3, 3e-4), (0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3))
"""Widths of the bend in turns, relative to the first layer's outputs; first none at all."""
BENT_STEPS = 4
"""Gauss-Newton steps at each width."""
HOPELESS_MISFIT = 0.3
"""Residuals relative to the update, root mean square, from which a start isn't near."""
MET = 10.0
"""Median residual, in units of rounding, at which nothing more is tried."""


def solve(update: Update, starts: Sequence[Unknowns], *, is_tied: bool) -> Refined:
    """Refine starts until an update is the one that was sent, or nothing is left to try.

    Args:
        update: as it was sent.
        starts: the likeliest first.
        is_tied: whether labels are equal in all but their two largest entries.
    """
    equations = Equations.of(update)
    size = _size_of_outputs(update, starts[0])
    best: Refined | None = None
    for bends in BENDS:
        for start in starts:
            tried = model_of(update, start, is_tied=is_tied)
            for bend in bends:
                bent = dataclasses.replace(equations.simulation, bend=bend * size)
                smooth = dataclasses.replace(equations, simulation=bent)
                tried = Model(refine(smooth, tried, BENT_STEPS).client, tried.directions)
            found = refine(equations, tried)
            if best is None or found.typical < best.typical:
                best = found
            if best.typical < MET:
                return best
        if best is not None and best.misfit > HOPELESS_MISFIT:
            break
    assert best is not None
    return best


def _size_of_outputs(update: Update, start: Unknowns) -> float:
    """Return the root mean square of what the first layer gives on the examples."""
    return float((start.inputs @ update.simulation.weights[0].T).square().mean().sqrt())
