"""The search: rows of numbers go down together, and each keeps the best that it met."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attacks.matching.optimisers import Optimiser
from attacks.matching.schedules import Schedule

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Rows (R, n) -> losses (R,) and gradients (R, n)."""
Project = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Stop:
    """When a search ends, with the best so far.

    Args:
        iterations: most gradient evaluations of a start, at least 1.
        patience: iterations within which the best must get better, once steps no longer change.
        least: by this share of the loss.
        seconds: most time, after which nothing is as it was promised to be twice; None: any.
    """

    iterations: int
    patience: int = 200
    least: float = 1e-3
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Best:
    """The best that each row met.

    Args:
        rows: (R, n), NaN before the first finite loss.
        losses: (R,), infinite before it.
    """

    rows: Tensor
    losses: Tensor

    @classmethod
    def none(cls, rows: Tensor) -> Best:
        """Return what rows have met before they are looked at."""
        return cls(torch.full_like(rows, torch.nan), rows.new_full((len(rows),), torch.inf))

    def met(self, rows: Tensor, losses: Tensor) -> Best:
        """Return the best with these."""
        is_better = losses < self.losses  # of NaN, no comparison holds
        return Best(
            torch.where(is_better[:, None], rows, self.rows),
            torch.where(is_better, losses, self.losses),
        )


@dataclass(frozen=True, eq=False)
class Found:
    """What a search came to.

    Args:
        rows: (R, n), each the best of its start; NaN where no loss was finite.
        losses: (R,), theirs; infinite there.
        evaluations: of gradients, over all starts.
        ended: why, as the end of "after 300 iterations, ...".
    """

    rows: Tensor
    losses: Tensor
    evaluations: int
    ended: str


def search(
    evaluate: Evaluate,
    rows: Tensor,
    *,
    optimiser: Optimiser,
    schedule: Schedule,
    stop: Stop,
    project: Project,
) -> Found:
    """Go down from rows (R, n), each on its own.

    A row whose loss isn't finite stays where it is from then on.

    Args:
        evaluate: the objective.
        rows: the starts.
        optimiser: moves them.
        schedule: how far.
        stop: until when.
        project: back to what may be.
    """
    started = time.monotonic()
    state: Any = optimiser.start(rows)
    best, mark = Best.none(rows), rows.new_full((len(rows),), torch.inf)
    settled = schedule.settles(stop.iterations)
    for step in range(stop.iterations):
        losses, gradient = evaluate(rows)
        best = best.met(rows, losses)
        is_sound = losses.isfinite() & gradient.isfinite().all(dim=1)
        done = step + 1
        if not is_sound.any():
            return _found(best, done, "as no start has a finite loss any more")
        if stop.seconds is not None and time.monotonic() - started > stop.seconds:
            return _found(best, done, f"as {stop.seconds:g} seconds were over")
        if step >= settled and (step - settled) % stop.patience == 0:
            is_flat = (best.losses >= (1 - stop.least) * mark) | best.losses.isinf()
            if step > settled and bool(is_flat.all()):
                return _found(best, done, "as nothing got better")
            mark = best.losses
        gradient = torch.where(is_sound[:, None], gradient, 0)
        moved, state = optimiser.step(rows, gradient, state, schedule.rate(step, stop.iterations))
        rows = torch.where(is_sound[:, None], project(moved), rows)
    return _found(best, stop.iterations, "the budget")


def _found(best: Best, steps: int, ended: str) -> Found:
    return Found(best.rows, best.losses, steps * len(best.losses), ended)
