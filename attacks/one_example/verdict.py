"""What the fits at the roots of a scan allow an attack to claim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attacks.answers import ExampleLabel, LabelRecovery, Status, known
from attacks.numerics.least_squares import BAR
from attacks.one_example.bars import Unknown, widest_bars
from attacks.one_example.fit import Fit
from attacks.one_example.noise import ROUNDED_DRIFT
from attacks.one_example.problem import Problem
from attacks.victim.gradients import Array
from attacks.victim.loss import IMBALANCE, OTHER_LOSS

WORST_DIRECTION = 0.1
"""Largest relative error of the feature's direction at which error bars, which are of first order,
are believed."""
CHANCE = 10.0
"""What a further unknown must gain in χ² to be believed: 1 in 600 gains as much by chance."""
RIVAL = 30.0
"""By how much worse in χ² a second root is no rival: odds of 3 million to one."""
MAX_CANDIDATES = 16
"""Labels given under NOT_IDENTIFIABLE, the best first."""
OPEN_FEATURE = "its feature is known up to a positive factor, and given as a unit vector"


@dataclass(frozen=True, eq=False)
class Tried:
    """What was fitted at one root.

    Args:
        fits: of the label models, the simplest first; at least one.
        explaining: those among them that explain the gradient.
    """

    fits: Sequence[Fit]
    explaining: Sequence[Fit]


def decide(
    problem: Problem,
    roots: Sequence[Tried],
    *,
    unknown: frozenset[Unknown],
    tolerance: float,
    certificate: float | None = None,
    plausible: Sequence[Fit] = (),
) -> LabelRecovery:
    """Turn the fits at every root into an answer that claims no more than they determine.

    Args:
        problem: the rank-one problem.
        roots: what was fitted at each.
        unknown: what the attacker doesn't know.
        tolerance: L∞ error that RECOVERED claims.
        certificate: of the scan.
        plausible: labels fitted at λ elsewhere, which noise and rounding may leave possible.
    """
    claim = _claim(problem, roots, unknown, tolerance, plausible)
    status = Status.RECOVERED if claim.reason is None else Status.NOT_IDENTIFIABLE
    candidates = [_on_simplex(fit.label) for fit in claim.candidates[:MAX_CANDIDATES]]
    found = dict[str, Any](
        certificate=known(certificate),
        candidates=torch.from_numpy(np.array(candidates)) if candidates else None,
    )
    best, λ = claim.best, _scale(problem, claim)
    if λ is not None:
        found["feature"] = torch.from_numpy(λ * problem.g[: problem.width])
    if best is not None:
        found |= {
            "label": torch.from_numpy(_on_simplex(best.label)),
            "augmentation": best.augmentation,
            "label_std": torch.from_numpy(best.std),
            "label_bar": known(claim.label_bar),
            "feature_bar": known(claim.feature_bar),
            "residual": known(best.residual),
        }
    reason = claim.reason
    if best is None and λ is not None and problem.bias is None:
        reason = f"{reason}; {OPEN_FEATURE}"
    example = ExampleLabel(status, reason, **found)
    return LabelRecovery.of([example], gradient_scale=None if best is None else best.gradient_scale)


def _scale(problem: Problem, claim: _Claim) -> float | None:
    """Return the λ to show: a bias's, the estimate's, or ±1 where it is open; None without."""
    if problem.bias is not None:
        return 1 / float(problem.g[-1]) if problem.g[-1] else None
    if claim.best is not None:
        return claim.best.λ
    signs = {float(np.sign(fit.λ)) for fit in claim.candidates}
    return signs.pop() if len(signs) == 1 else None


@dataclass(frozen=True)
class _Claim:
    """What the fits determine: the label, unless there is a reason why not.

    Args:
        candidates: the labels that explain the gradient, the best first.
        best: the estimate; None where several fit equally well.
        reason: why the label isn't determined.
        label_bar: L∞ error bar of the estimate; None where nothing tells, as where it doesn't
            explain the gradient.
        feature_bar: relative error bar of the feature's λ, where it is.
    """

    candidates: list[Fit]
    best: Fit | None
    reason: str | None = None
    label_bar: float | None = None
    feature_bar: float | None = None


def _claim(
    problem: Problem,
    roots: Sequence[Tried],
    unknown: frozenset[Unknown],
    tolerance: float,
    plausible: Sequence[Fit],
) -> _Claim:
    fitting = [_select(problem, root.explaining) for root in roots if root.explaining]
    if not fitting:
        chosen = (min(root.fits, key=lambda fit: fit.residual) for root in roots)
        guesses = sorted(chosen, key=lambda fit: fit.residual)
        reason = (
            "no augmented label explains the gradient: it may have been changed by a defense or an "
            "optimizer, or come from more than one example, or from another loss"
        )
        if abs(problem.drift) > max(
            IMBALANCE * float(np.abs(problem.α).sum()),
            ROUNDED_DRIFT * float(np.linalg.norm(problem.σ_α)),
        ):
            reason = OTHER_LOSS
        return _Claim([], guesses[0] if guesses else None, reason)
    enough = [fit for fit in fitting if fit.surplus >= 1]
    if not enough:
        equations = f"{len(problem.α)} classes give no more equations than unknowns"
        fitting = _distinct(fitting, tolerance)
        return _Claim(fitting, None, f"{equations}; {_count(len(fitting), 'label')} fit")
    best = min(enough, key=_rank(problem))
    if problem.direction_error > WORST_DIRECTION:
        uncertain = f"its direction is uncertain by {problem.direction_error:.0%}"
        return _Claim([best], best, f"noise hides the gradient: {uncertain}")
    others = [f for f in fitting if np.abs(f.label - best.label).max() > tolerance]
    if problem.is_noisy:  # a model without an equation to spare can rival one that has some
        others = [f for f in others if f.misfit < best.misfit + RIVAL]
    else:
        others = [f for f in others if f.surplus >= 1]
    if others:
        others = _distinct(others, tolerance)
        found = _count(1 + len(others), "label")
        if problem.is_noisy:  # one of them is likelier
            away = max(float(np.abs(fit.label - best.label).max()) for fit in others)
            return _Claim([best, *others], best, f"noise leaves {found} possible", away)
        return _Claim([best, *others], None, f"{found} fit equally well")
    bar, feature_bar = widest_bars(problem, best, unknown)
    limit = best.misfit + BAR**2 * max(1.0, best.residual) ** 2
    near = [f.label for f in plausible if f.misfit <= limit]
    bar = max(bar, *(float(np.abs(label - best.label).max()) for label in near), 0.0)
    if not bar <= tolerance:
        cause = (
            "noise"
            if problem.is_noisy
            else "the rounding to 16 bits"
            if problem.is_coarse
            else "float rounding (the network is saturated, or its logits hardly differ)"
        )
        bar = bar if bar < 1 else 1.0  # it may be infinite, or not a number
        uncertain = f"uncertain by ±{bar:.2g}, more than {tolerance:g}"
        return _Claim([best], best, f"{cause} leaves the label {uncertain}", bar)
    return _Claim([best], best, label_bar=bar, feature_bar=feature_bar)


def _distinct(fits: Sequence[Fit], tolerance: float) -> list[Fit]:
    """Return the first of each set of fits whose labels agree: near roots lead to one label."""
    kept: list[Fit] = []
    for fit in fits:
        if all(np.abs(fit.label - other.label).max() > tolerance for other in kept):
            kept.append(fit)
    return kept


def _select(problem: Problem, explaining: Sequence[Fit]) -> Fit:
    """Choose a label model at a root: the simplest that explains the gradient.

    Under noise, whose size is known, the simplest that no wider one improves on by more than
    chance does; a second class may be any.
    """
    if not problem.is_noisy:
        return min(explaining, key=lambda fit: (fit.unknowns, fit.residual))
    look_elsewhere = 2 * np.log(len(problem.α))
    return min(
        explaining,
        key=lambda fit: fit.misfit + CHANCE * fit.unknowns + look_elsewhere * fit.model.pair,
    )


def _rank(problem: Problem) -> Callable[[Fit], tuple[float, float]]:
    """Return how the fits at several roots are ordered."""
    if problem.is_noisy:
        return lambda fit: (fit.misfit + CHANCE * fit.unknowns, 0.0)
    return lambda fit: (-fit.surplus, fit.residual)


def _on_simplex(label: Array) -> Array:
    positive = label.clip(0)
    return np.asarray(positive / positive.sum())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
