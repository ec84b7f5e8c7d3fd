"""A rank-one problem as a scan sees it: the paper's functions of λ, on few of many classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.one_example.noise import expected_variance
from attacks.one_example.problem import Problem
from attacks.victim.gradients import Array

FEW = 96
"""Classes on which φ is evaluated, at most."""


@dataclass(frozen=True, eq=False)
class View:
    """A problem, looked at through some of its classes, and the functions of λ that are scanned.

    Args:
        problem: the whole.
        classes: those with the most extreme α, where a label's largest entries show, and others at
            regular distances, (n,).
        ŷ: a view and λ (N,) -> the labels (N, n) of its classes.
        φ: λ (N,), ŷ (N, n) and how many of its largest entries are spared -> (N,).
    """

    problem: Problem
    classes: NDArray[np.intp]
    ŷ: Callable[[View, Array], Array]
    φ: Callable[[Array, Array, int], Array]

    @property
    def is_whole(self) -> bool:
        """Whether all classes are in it."""
        return len(self.classes) == len(self.problem.α)

    @property
    def α(self) -> Array:
        """The α of its classes, (n,)."""
        return np.asarray(self.problem.α[self.classes])

    def p(self, λ: Array) -> Array:
        """Return the softmax of its classes, its sum over all classes, for λ (N,); (N, n)."""
        logits = self.problem.logits
        if self.problem.offset is not None:
            return np.asarray(self.problem.p(λ)[:, self.classes])
        top = np.where(λ > 0, logits.max(), logits.min())
        sums = np.exp(λ[:, None] * (logits - top[:, None])).sum(axis=-1)
        some = np.exp(λ[:, None] * (logits[self.classes] - top[:, None]))
        return np.asarray(some / sums[:, None])

    def labels(self, λ: Array) -> Array:
        """Return ŷ(λ), (N, n)."""
        return self.ŷ(self, λ)

    def variance(self, λ: Array) -> Array:
        """Return the variance that noise and rounding give `λ p(λ) − α` at a root, (N, n)."""
        return expected_variance(self.problem, λ, self.p(λ), self.classes)


def view_few(
    problem: Problem,
    ŷ: Callable[[View, Array], Array],
    φ: Callable[[Array, Array, int], Array],
) -> View:
    """Look at a problem through so few classes that a scan is quick."""
    number = len(problem.α)
    if number <= FEW:
        return View(problem, np.arange(number), ŷ, φ)
    order = np.argsort(problem.α)
    quarter = FEW // 4
    between = np.linspace(quarter, number - quarter - 1, FEW - 2 * quarter).astype(np.intp)
    classes = np.concatenate([order[:quarter], order[between], order[-quarter:]])
    return View(problem, classes, ŷ, φ)
