"""Scan λ for the roots of `α = λ (p(λ) − y)` with an augmented label y.

The letters are those of `attacks.labels.soft_label`, whose ŷ and φ are given: φ vanishes at a root
but for noise and rounding, so that what counts is the misfit, φ over what they are expected to make
of it. It is evaluated on a grid in log |λ|, and a local minimum is narrowed down unless φ's slope
rules out that it vanishes nearby.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.numerics.least_squares import BAR
from attacks.numerics.search import ZOOMED, minima_of, zoom
from attacks.one_example.view import View
from attacks.victim.gradients import Array

STEP = 0.05
"""Step of the grid in log |λ|."""
FINER = 16
"""Points to a step around the minima of φ for one class."""
DECADES = 8
"""How far beyond the smallest possible |λ| the grid goes."""
SATURATED = 60.0
"""Lead of the largest logit beyond which nothing changes: the others' p are below 1e-26."""
NEAR = 1e3
"""Misfit up to which a minimum may be a root: how large rounding is, is known roughly."""
MOST_PLAUSIBLE = 48
"""Points between the roots at which a label is fitted, to see how far noise leaves λ open."""
PART = 48
"""Points that are scanned at a time, where φ is evaluated on some of the classes only."""

Objective = Callable[[Array, Array], Array]


@dataclass(frozen=True, eq=False)
class Scan:
    """What is found along λ.

    Args:
        minima: λ at the local minima of the misfit, the least first, (N,).
        misfits: there; where a root is ruled out, a lower bound.
        explained: λ of the grid that noise and rounding leave possible; few where φ is sharp.
        classes: K.
        signs: of λ that are possible.
    """

    minima: Array
    misfits: Array
    explained: Array
    classes: int
    signs: tuple[int, ...] = (1, -1)

    @property
    def roots(self) -> Array:
        """The λ that may be roots, the best first and always; none without a minimum."""
        return self.minima[: max(1, np.count_nonzero(self.misfits <= NEAR))]

    @property
    def certificate(self) -> float | None:
        """The runner-up's misfit over the least, at least 1; None without one, or for K < 5."""
        if len(self.misfits) < 2 or self.classes < 5:
            return None
        return float(self.misfits[1] / max(self.misfits[0], 1.0))

    @property
    def between(self) -> Array:
        """Some λ that noise and rounding leave possible."""
        return self.explained[:: 1 + len(self.explained) // MOST_PLAUSIBLE]

    def of_sign(self, sign: int) -> Scan:
        """Keep what is of one sign of λ."""
        kept = np.sign(self.minima) == sign
        explained = self.explained[np.sign(self.explained) == sign]
        return Scan(self.minima[kept], self.misfits[kept], explained, self.classes, (sign,))

    @classmethod
    def of(cls, view: View) -> Scan:
        """Scan both signs of λ, the likelier one first."""
        parts = []
        likely = view.problem.sign_of_features()
        for grid in itertools.chain(_grids(view, likely), _grids(view, -likely)):
            parts.append(_scan(view, grid))
            if _is_enough(view, parts[-1][1]):
                break
        minima, misfits, explained = map(np.concatenate, zip(*parts, strict=True))
        order = np.argsort(misfits, kind="stable")
        return cls(minima[order], misfits[order], explained, len(view.problem.α))


def find_roots(view: View, is_nonnegative: Callable[[], bool]) -> Scan:
    """Scan λ, for one sign alone where features are never negative; a bias fixes it.

    Args:
        view: of the problem.
        is_nonnegative: says whether features are; it costs a pass through the network, and mostly
            roots of one sign only are possible.
    """
    problem = view.problem
    if problem.bias is not None:  # its own feature is 1 = λ g_bias
        with np.errstate(divide="ignore"):
            λ = 1 / problem.g[-1:]
        λ = λ[np.isfinite(λ)]
        return Scan(λ, 0 * λ, λ[:0], 0, ())
    scan = Scan.of(view)
    if len(np.unique(np.sign(scan.roots))) > 1 and is_nonnegative():
        return scan.of_sign(problem.sign_of_features())
    return scan


def finer_steps() -> Array:
    """Return the factors that lead from a point of the grid to the finer ones around it."""
    return np.asarray(np.exp((np.arange(2 * FINER) - FINER + 0.5) / FINER * STEP))


def _scan(view: View, grid: Array) -> tuple[Array, Array, Array]:
    """Return the minima on a grid, their misfits, and the λ that are explained."""
    labels = view.labels(grid)
    # A second class with a small share makes a narrow dip, at the bottom of φ for one class.
    one = minima_of(view.φ(grid, labels, 1))
    fine = (grid[one][:, None] * finer_steps()).ravel()
    points = np.concatenate([grid, fine])
    order = np.argsort(np.abs(points), kind="stable")
    points = points[order]
    labels = np.concatenate([labels, view.labels(fine)])[order]
    minima, explained = [], []
    for objective in _objectives(view):
        phi = objective(points, labels)
        inner = minima_of(phi)
        low, found, high = (points[inner + k] for k in (-1, 0, 1))
        sharp = _may_vanish(view, found, phi[inner], high / low)
        zoomed = _narrowed(view, objective, low[sharp], high[sharp])
        least = objective(zoomed, view.labels(zoomed)) / _expected(view, zoomed)
        minima.append((zoomed, least))
        # Where φ can't vanish nearby, it can still fall to a quarter.
        blunt, rest = found[~sharp], phi[inner][~sharp] / 4
        minima.append((blunt, rest / _expected(view, blunt)))
        # The plateau, where ŷ is nearly hard.
        minima.append((points[-1:], phi[-1:] / _expected(view, points[-1:])))
        explained.append(points[phi <= BAR**2 * _expected(view, points)])
    found, misfits = map(np.concatenate, zip(*minima, strict=True))
    inside, possible = _is_on_simplex(view, found), np.concatenate(explained)
    return found[inside], misfits[inside], possible[_is_on_simplex(view, possible)]


def _narrowed(view: View, objective: Objective, low: Array, high: Array) -> Array:
    """Return the minima in all brackets (low, high) of λ."""
    # To the gradient's own precision: of two exact roots neither must look worse for its λ.
    passes = max(7, math.ceil(math.log(STEP / view.problem.eps, ZOOMED)))
    return zoom(lambda λ: objective(λ, view.labels(λ)), low, high, passes=passes)


def _grids(view: View, sign: int) -> Iterator[Array]:
    """Yield the grid of λ of one sign: whole, or with many classes in parts.

    |λ| is at least ‖α‖₁/2, since ‖p − y‖₁ is at most 2.
    """
    problem = view.problem
    logits = np.sort(sign * problem.logits)
    sure = (np.abs(problem.α) - 2 * problem.σ_α).clip(0).sum()
    first = np.log(max(sure, float(np.abs(problem.α).max())) / 2) - 2 * STEP
    lead = max(logits[-1] - logits[-2], 1e-300)
    saturated = SATURATED + (0.0 if problem.offset is None else float(np.ptp(problem.offset)))
    last = min(first + DECADES * np.log(10), max(np.log(saturated / lead), first + 1))
    grid = sign * np.exp(np.arange(first, last + STEP, STEP))
    length = len(grid) if view.is_whole else PART
    for start in range(0, len(grid) - 2, length):
        yield grid[start : start + length + 2]


def _is_enough(view: View, misfits: Array) -> bool:
    """Say whether a root is found and there can't be another.

    It would have to satisfy as many equations as there are classes by chance.
    """
    return not (view.is_whole or view.problem.is_noisy) and bool((misfits <= NEAR).any())


def _may_vanish(view: View, λ: Array, phi: Array, widths: Array) -> NDArray[np.bool_]:
    """Say where φ can be 0 within a grid's step, going by the slope of `λ p(λ) − α`."""
    if view.problem.is_noisy or len(view.problem.α) < 5:
        return np.ones(len(λ), dtype=bool)
    z = np.multiply.outer(λ, view.problem.logits[view.classes])
    p = view.p(λ)
    mean = (p * z).sum(axis=1, keepdims=True) / p.sum(axis=1, keepdims=True)
    slope = λ * (p * (1 + z - mean)).std(axis=1)
    return np.asarray(np.sqrt(phi) <= 2 * np.log(widths) * np.abs(slope))


def _expected(view: View, λ: Array) -> Array:
    """Return what noise and rounding are expected to make of φ at a root, (N,)."""
    if view.problem.is_noisy:  # then it is weighted
        return np.ones(len(λ))
    tied = max(len(view.classes) - 2, 1)
    return np.asarray(np.partition(view.variance(λ), tied - 1, axis=-1)[:, :tied].mean(axis=-1))


def _is_on_simplex(view: View, λ: Array) -> NDArray[np.bool_]:
    labels = view.labels(λ)
    slack = 1e-3 + 6 * np.sqrt(view.variance(λ)) / np.abs(λ)[:, None]
    return np.asarray(((labels > -slack) & (labels < 1 + slack)).all(axis=-1))


def _objectives(view: View) -> list[Objective]:
    """Return the functions of λ and ŷ whose minima hold the root.

    From five classes on one does. Below, too few entries are tied: a smoothed label may leave
    only its own tie, a mixed one only a zero, so these are searched too.
    """
    classes = len(view.problem.α)
    if classes >= 5 and view.problem.is_noisy:
        return [lambda λ, labels: _weighted_variance(view, λ, labels)]
    if classes >= 5:
        return [lambda λ, labels: view.φ(λ, labels, 2)]
    few: list[Objective] = [lambda λ, labels: view.φ(λ, labels, 1), _smallest]
    few += [lambda λ, labels: view.φ(λ, labels, 2)] * (classes == 4)
    return [_relative(view, objective) for objective in few] if view.problem.is_noisy else few


def _relative(view: View, objective: Objective) -> Objective:
    """Divide an objective by the variance that noise gives it."""
    return lambda λ, labels: np.asarray(objective(λ, labels) / view.variance(λ).mean(axis=-1))


def _weighted_variance(view: View, λ: Array, labels: Array) -> Array:
    """Return φ with each entry weighted by its noise: about 1 at a root.

    The two entries left out are those that exceed the median by the most standard deviations.
    """
    std = np.sqrt(view.variance(λ)) / np.abs(λ)[:, None]
    excess = (labels - np.median(labels, axis=-1, keepdims=True)) / std
    cut = np.partition(excess, -2, axis=-1)[:, -2, None]
    weights = np.where(excess < cut, std**-2, 0.0)
    mean = (weights * labels).sum(axis=-1) / weights.sum(axis=-1)
    misfit = (weights * (labels - mean[:, None]) ** 2).sum(axis=-1)
    return np.asarray(misfit / max(labels.shape[1] - 3, 1))


def _smallest(λ: Array, labels: Array) -> Array:
    return np.asarray((λ * labels.min(axis=-1)) ** 2)
