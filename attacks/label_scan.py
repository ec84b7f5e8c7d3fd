"""Scan λ for the roots of `α = λ (p(λ) − y)` with an augmented label y.

The letters are those of `attacks.soft_label`. `φ(λ) = λ² Var(ŷ(λ))` over all but the two largest
entries of ŷ vanishes at a root, but for noise and rounding: what counts is the misfit, φ over what
they are expected to make of it. It is evaluated on a grid in log |λ|, and a local minimum is
narrowed down unless φ's slope rules out that it vanishes nearby.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.label_fit import BAR, softmax
from attacks.label_noise import expected_variance
from attacks.last_layer import LastLayer
from attacks.rank_one import Array

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
FEW, PART = 96, 48
"""Classes on which φ is evaluated, at most; with more, the points that are scanned at a time."""

Objective = Callable[[Array, Array], Array]


def predicted_label(layer: LastLayer, scales: Array) -> Array:
    """Return `ŷ(λ) = softmax(λ W g) − α / λ` for scales λ (N,); (N, K)."""
    p = softmax(np.multiply.outer(scales, layer.logits))
    return np.asarray(p - layer.alpha / scales[..., None])


def tie_variance(scales: Array, labels: Array, largest: int = 2) -> Array:
    """Return `φ(λ) = λ² Var(ŷ(λ))` over all but the `largest` entries of ŷ (N, K); (N,)."""
    tied = np.partition(labels, -largest, axis=-1)[..., :-largest]
    return np.asarray(scales**2 * tied.var(axis=-1))


@dataclass(frozen=True, eq=False)
class Scan:
    """What is found along λ.

    Args:
        minima: λ at the local minima of the misfit, the least first, (N,).
        misfits: there; where a root is ruled out, a lower bound.
        explained: λ of the grid that noise and rounding leave possible; few where φ is sharp.
        classes: K.
    """

    minima: Array
    misfits: Array
    explained: Array
    classes: int

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

    def of_sign(self, sign: int) -> Scan:
        """Keep what is of one sign of λ."""
        kept = np.sign(self.minima) == sign
        explained = self.explained[np.sign(self.explained) == sign]
        return Scan(self.minima[kept], self.misfits[kept], explained, self.classes)

    @classmethod
    def of(cls, layer: LastLayer) -> Scan:
        """Scan both signs of λ, the likelier one first."""
        few = _Few.of(layer)
        parts = []
        likely = layer.sign_of_features()
        for grid in itertools.chain(few.grids(likely), few.grids(-likely)):
            parts.append(few.scan(grid))
            if few.is_enough(parts[-1][1]):
                break
        minima, misfits, explained = map(np.concatenate, zip(*parts, strict=True))
        order = np.argsort(misfits, kind="stable")
        return cls(minima[order], misfits[order], explained, len(layer.alpha))


@dataclass(frozen=True, eq=False)
class _Few:
    """A layer, looked at through some of its classes.

    Args:
        layer: the whole.
        classes: those with the most extreme α, where a label's largest entries show, and others at
            regular distances, (n,).
    """

    layer: LastLayer
    classes: NDArray[np.intp]

    @classmethod
    def of(cls, layer: LastLayer) -> _Few:
        number = len(layer.alpha)
        if number <= FEW:
            return cls(layer, np.arange(number))
        order = np.argsort(layer.alpha)
        quarter = FEW // 4
        between = np.linspace(quarter, number - quarter - 1, FEW - 2 * quarter).astype(np.intp)
        return cls(layer, np.concatenate([order[:quarter], order[between], order[-quarter:]]))

    def p(self, scales: Array) -> Array:
        """Return softmax(λ W g), its sum over all classes, (N, n)."""
        logits = self.layer.logits
        top = np.where(scales > 0, logits.max(), logits.min())
        sums = np.exp(scales[:, None] * (logits - top[:, None])).sum(axis=-1)
        some = np.exp(scales[:, None] * (logits[self.classes] - top[:, None]))
        return np.asarray(some / sums[:, None])

    def labels(self, scales: Array) -> Array:
        """Return ŷ(λ), (N, n)."""
        return np.asarray(self.p(scales) - self.layer.alpha[self.classes] / scales[:, None])

    def scan(self, grid: Array) -> tuple[Array, Array, Array]:
        """Return the minima on a grid, their misfits, and the λ that are explained."""
        labels = self.labels(grid)
        # A second class with a small share makes a narrow dip, at the bottom of φ for one class.
        one = minima_of(tie_variance(grid, labels, 1))
        fine = (grid[one][:, None] * finer_steps()).ravel()
        points = np.concatenate([grid, fine])
        order = np.argsort(np.abs(points), kind="stable")
        points = points[order]
        labels = np.concatenate([labels, self.labels(fine)])[order]
        minima, explained = [], []
        for objective in self._objectives():
            phi = objective(points, labels)
            inner = minima_of(phi)
            low, found, high = (points[inner + k] for k in (-1, 0, 1))
            sharp = self._may_vanish(found, phi[inner], high / low)
            zoomed = self._zoom(objective, low[sharp], high[sharp])
            least = objective(zoomed, self.labels(zoomed)) / self._expected(zoomed)
            minima.append((zoomed, least))
            # Where φ can't vanish nearby, it can still fall to a quarter.
            blunt, rest = found[~sharp], phi[inner][~sharp] / 4
            minima.append((blunt, rest / self._expected(blunt)))
            # The plateau, where ŷ is nearly hard.
            minima.append((points[-1:], phi[-1:] / self._expected(points[-1:])))
            explained.append(points[phi <= BAR**2 * self._expected(points)])
        found, misfits = map(np.concatenate, zip(*minima, strict=True))
        inside, possible = self._is_on_simplex(found), np.concatenate(explained)
        return found[inside], misfits[inside], possible[self._is_on_simplex(possible)]

    def grids(self, sign: int) -> Iterator[Array]:
        """Yield the grid of λ of one sign: whole, or with many classes in parts.

        |λ| is at least ‖α‖₁/2, since ‖p − y‖₁ is at most 2.
        """
        logits = np.sort(sign * self.layer.logits)
        sure = (np.abs(self.layer.alpha) - 2 * self.layer.alpha_sigma).clip(0).sum()
        first = np.log(max(sure, float(np.abs(self.layer.alpha).max())) / 2) - 2 * STEP
        lead = max(logits[-1] - logits[-2], 1e-300)
        last = min(first + DECADES * np.log(10), max(np.log(SATURATED / lead), first + 1))
        grid = sign * np.exp(np.arange(first, last + STEP, STEP))
        length = PART if len(self.classes) < len(self.layer.alpha) else len(grid)
        for start in range(0, len(grid) - 2, length):
            yield grid[start : start + length + 2]

    def is_enough(self, misfits: Array) -> bool:
        """Say whether a root is found and there can't be another.

        It would have to satisfy as many equations as there are classes by chance.
        """
        is_whole = len(self.classes) == len(self.layer.alpha)
        return not (is_whole or self.layer.is_noisy) and bool((misfits <= NEAR).any())

    def _may_vanish(self, scales: Array, phi: Array, widths: Array) -> NDArray[np.bool_]:
        """Say where φ can be 0 within a grid's step, going by the slope of `λ p(λ) − α`."""
        if self.layer.is_noisy or len(self.layer.alpha) < 5:
            return np.ones(len(scales), dtype=bool)
        z = np.multiply.outer(scales, self.layer.logits[self.classes])
        p = self.p(scales)
        mean = (p * z).sum(axis=1, keepdims=True) / p.sum(axis=1, keepdims=True)
        slope = scales * (p * (1 + z - mean)).std(axis=1)
        return np.asarray(np.sqrt(phi) <= 2 * np.log(widths) * np.abs(slope))

    def _expected(self, scales: Array) -> Array:
        """Return what noise and rounding are expected to make of φ at a root, (N,)."""
        if self.layer.is_noisy:  # then it is weighted
            return np.ones(len(scales))
        tied = max(len(self.classes) - 2, 1)
        variance = self._variance(scales)
        return np.asarray(np.partition(variance, tied - 1, axis=-1)[:, :tied].mean(axis=-1))

    def _is_on_simplex(self, scales: Array) -> NDArray[np.bool_]:
        labels = self.labels(scales)
        slack = 1e-3 + 6 * np.sqrt(self._variance(scales)) / np.abs(scales)[:, None]
        return np.asarray(((labels > -slack) & (labels < 1 + slack)).all(axis=-1))

    def _objectives(self) -> list[Objective]:
        """Return the functions of λ and ŷ whose minima hold the root.

        From five classes on one does. Below, too few entries are tied: a smoothed label may leave
        only its own tie, a mixed one only a zero, so these are searched too.
        """
        classes = len(self.layer.alpha)
        if classes >= 5:
            return [self._weighted_variance if self.layer.is_noisy else tie_variance]
        few: list[Objective] = [_single, _smallest]
        few += [tie_variance] * (classes == 4)
        return [self._relative(objective) for objective in few] if self.layer.is_noisy else few

    def _relative(self, objective: Objective) -> Objective:
        """Divide an objective by the variance that noise gives it."""

        def relative(scales: Array, labels: Array) -> Array:
            variance = self._variance(scales).mean(axis=-1)
            return np.asarray(objective(scales, labels) / variance)

        return relative

    def _variance(self, scales: Array) -> Array:
        return expected_variance(self.layer, scales, self.p(scales), self.classes)

    def _weighted_variance(self, scales: Array, labels: Array) -> Array:
        """Return φ with each entry weighted by its noise: about 1 at a root.

        The two entries left out are those that exceed the median by the most standard deviations.
        """
        std = np.sqrt(self._variance(scales)) / np.abs(scales)[:, None]
        excess = (labels - np.median(labels, axis=-1, keepdims=True)) / std
        cut = np.partition(excess, -2, axis=-1)[:, -2, None]
        weights = np.where(excess < cut, std**-2, 0.0)
        mean = (weights * labels).sum(axis=-1) / weights.sum(axis=-1)
        misfit = (weights * (labels - mean[:, None]) ** 2).sum(axis=-1)
        return np.asarray(misfit / max(labels.shape[1] - 3, 1))

    def _zoom(self, objective: Objective, low: Array, high: Array) -> Array:
        """Narrow all brackets (low, high) of λ at once, eightfold a pass, to 1e-7 in log λ."""
        for _ in range(7 if len(low) else 0):
            points = np.geomspace(low, high, 17)
            values = objective(points.ravel(), self.labels(points.ravel())).reshape(points.shape)
            least = values.argmin(axis=0).clip(1, 15)
            low, high = (points[least + k, np.arange(len(least))] for k in (-1, 1))
        return np.sign(low) * np.sqrt(low * high)


def minima_of(values: Array) -> NDArray[np.intp]:
    """Return the indices of the local minima, but for the ends and the ripple on plateaus."""
    deeper = values[1:-1] * (1 + 1e-9)
    return np.flatnonzero((deeper < values[:-2]) & (deeper <= values[2:])) + 1


def _single(scales: Array, labels: Array) -> Array:
    return tie_variance(scales, labels, 1)


def _smallest(scales: Array, labels: Array) -> Array:
    return np.asarray((scales * labels.min(axis=-1)) ** 2)


def finer_steps() -> Array:
    """Return the factors that lead from a point of the grid to the finer ones around it."""
    return np.asarray(np.exp((np.arange(2 * FINER) - FINER + 0.5) / FINER * STEP))
