"""One factor on the gradient for all examples of a batch.

[ours] A label is the less certain the more alike the logits are: where a factor c on the gradient
isn't known, `α = c λ (p − y)` shows it by the differences within p alone. But c is the batch's, and
each example measures it: their weighted mean is known better than any one's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from attacks.answers import ExampleLabel, LabelRecovery, Status, known
from attacks.numerics.least_squares import BAR, left_inverse
from attacks.one_example.fit import Linearised
from attacks.one_example.label_model import LabelModel
from attacks.one_example.problem import Problem

LEAST_MEASURES = 3
"""Examples that measure the factor, at least."""
WORST_FACTOR = 1e-2
"""Error bar of the factor, relative, up to which it is of use."""
DISAGREE = 3.0
"""Rms distance of the measures from their mean, in their standard deviations, beyond which there is
no common one."""


class Solve(Protocol):
    """Solves one example's problem."""

    def __call__(self, problem: Problem, *, is_scale_known: bool = False) -> LabelRecovery:
        """Find λ and the label, with a factor of 1 on the gradient, or of what it shows."""


@dataclass(frozen=True)
class Factor:
    """What a batch's examples say of c together.

    Args:
        value: c.
        bar: relative error bar.
    """

    value: float
    bar: float


@dataclass(frozen=True)
class Measure:
    """What one example says of c.

    Args:
        logarithm: ln c.
        std: its standard deviation.
    """

    logarithm: float
    std: float


def measured_factor(problem: Problem, answer: LabelRecovery) -> Measure | None:
    """Measure c by an example with a label, its shares left free; None where it tells nothing.

    Args:
        problem: the example's.
        answer: to it.
    """
    [example] = answer.examples
    label, feature, kind = example.label, example.feature, example.augmentation
    if label is None or feature is None or kind is None:
        return None
    direction = problem.g[: problem.width]
    λ = float(feature.numpy() @ direction) / max(float(direction @ direction), 1e-300)
    factor = answer.gradient_scale or 1.0
    y = label.numpy()
    a, b = np.argsort(-y)[:2].tolist()
    moves = LabelModel(kind.mixing is not None, None).basis(len(y), a, b)[1]
    line = Linearised.at(problem, λ, 1 / (factor * λ), y, moves, is_scaled=True)
    if not np.isfinite(line.design).all():
        return None
    wanted = np.zeros(line.design.shape[1])  # ln c = ln (c λ) − ln λ
    wanted[:2] = -1 / λ, 1.0
    rows = wanted @ left_inverse(line.design)
    logarithm, std = float(np.log(factor) + rows @ line.target), float(np.linalg.norm(rows))
    return Measure(logarithm, std) if np.isfinite(logarithm) and 0 < std < np.inf else None


def common_factor(measures: Sequence[Measure | None]) -> Factor | None:
    """Average what the examples measure; None where they are too few, or disagree.

    Args:
        measures: of examples whose λ a bias gives.
    """
    found = np.array([(one.logarithm, one.std) for one in measures if one is not None])
    if len(found) < LEAST_MEASURES:
        return None
    logarithm, std = found.T
    weight = std**-2
    mean = float(weight @ logarithm / weight.sum())
    scatter = float(np.sqrt(np.mean(((logarithm - mean) / std) ** 2)))
    bar = BAR * max(scatter, 1.0) / float(np.sqrt(weight.sum()))
    if not (scatter <= DISAGREE and bar <= WORST_FACTOR):
        return None
    return Factor(float(np.exp(mean)), bar)


def solve_under(
    factor: Factor,
    problem: Problem,
    answer: ExampleLabel,
    solve: Solve,
    tolerance: float,
) -> ExampleLabel | None:
    """Solve an example's problem again with the factor known up to its bar; None if it says less.

    A label that it confirms stays as it was: with the factor that fits best, mostly 1.

    Args:
        factor: of the batch.
        problem: the example's.
        answer: without knowing the factor.
        solve: finds its label.
        tolerance: L∞ error of a label that RECOVERED stays below.
    """
    [example], [moved] = (
        solve(_divided(problem, factor.value * stretch), is_scale_known=True).examples
        for stretch in (1.0, 1.0 + factor.bar)
    )
    if example.status is not Status.RECOVERED or example.label is None or moved.label is None:
        return None
    bar = (example.label_bar or 0.0) + float((example.label - moved.label).abs().max())
    away = 0.0 if answer.label is None else float((answer.label - example.label).abs().max())
    if not bar + away <= tolerance:
        return None
    found = example if answer.label is None or away > bar else answer
    return dataclasses.replace(
        found, status=Status.RECOVERED, reason=None, label_bar=known(bar + away), candidates=None
    )


def _divided(problem: Problem, factor: float) -> Problem:
    return dataclasses.replace(
        problem,
        α=problem.α / factor,
        σ_α=problem.σ_α / factor,
        sigma=problem.sigma / factor,
        rounding=problem.rounding / factor,
        drift=problem.drift / factor,
    )
