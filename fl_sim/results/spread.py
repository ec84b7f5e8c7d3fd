"""A number over the runs of a cell: mean, median and a 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from scipy.stats import t as student

from fl_sim.leakage.leaks import SURE, Share


@dataclass(frozen=True)
class Spread:
    """What the same number of several runs, which differ in their seeds, comes to.

    `low` and `high` are the 95 % interval of the mean; None where nothing tells it.
    """

    runs: int
    mean: float
    median: float
    low: float | None
    high: float | None


def spread(
    values: Sequence[float | None],
    *,
    is_share: bool = False,
    examples: Sequence[float] | None = None,
) -> Spread | None:
    """Sum up a number over runs; None where no run has it.

    The interval is Student's t over the runs. That of a share of examples spans Wilson's interval
    of the examples in all runs, too: runs that agree would otherwise leave it without a width, as
    if the examples told everything. To take the wider of both is ours.

    Args:
        values: one for each run; None counts as no run.
        is_share: whether they are shares, and the interval lies in [0, 1].
        examples: how many examples each of the shares is of, where that is known.
    """
    known = [index for index, value in enumerate(values) if value is not None]
    found = [float(value) for value in values if value is not None]
    if not found:
        return None
    low, high = _student(found)
    if examples is not None:
        sizes = [round(examples[index]) for index in known]
        hits = sum(round(x * size) for x, size in zip(found, sizes, strict=True))
        ends = Share(hits, sum(sizes)).interval
        low = ends[0] if low is None else min(low, ends[0])
        high = ends[1] if high is None else max(high, ends[1])
    if is_share and low is not None and high is not None:
        low, high = max(0.0, low), min(1.0, high)
    return Spread(len(found), fmean(found), median(found), low, high)


def _student(found: Sequence[float]) -> tuple[float | None, float | None]:
    if len(found) < 2:
        return None, None
    half = float(student.ppf((1 + SURE) / 2, len(found) - 1)) * stdev(found)
    half /= math.sqrt(len(found))
    return fmean(found) - half, fmean(found) + half
