"""Scan λ for the roots of `α = λ (p(λ) − y)` with an augmented label y.

The letters are those of `attacks.soft_label`. `φ(λ) = λ² Var(ŷ(λ))` over all but the two largest
entries of ŷ vanishes at a root. It is evaluated on a grid in log |λ|, both signs at once; a local
minimum is narrowed down unless φ's slope rules out that it vanishes nearby.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.label_fit import BAR, softmax
from attacks.label_noise import expected_variance
from attacks.last_layer import Array, LastLayer

STEP = 0.05
"""Step of the grid in log |λ|."""
FINER = 16
"""Points to a step around the minima of φ for one class."""
DECADES = 8
"""How far beyond the smallest possible |λ| the grid goes."""
SATURATED = 60.0
"""Lead of the largest logit beyond which nothing changes: the others' p are below 1e-26."""
NEAR = 1e3
"""Minima up to this many times what φ is expected to be at a root are possible roots."""
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
        minima: λ at the local minima of φ, the least first, (N,).
        values: φ there; where a root is ruled out, a lower bound.
        is_possible: whether noise and rounding may make of it what it is.
        smallest: φ that float rounding can't resolve.
        explained: λ of the grid at which noise and rounding explain φ; few where it is sharp.
        classes: K.
    """

    minima: Array
    values: Array
    is_possible: NDArray[np.bool_]
    smallest: float
    explained: Array
    classes: int

    @property
    def roots(self) -> Array:
        """The λ that may be roots, the least φ first."""
        return self.minima[self.is_possible]

    @property
    def certificate(self) -> float | None:
        """The runner-up's φ over the least; None without one, or below five classes."""
        if len(self.values) < 2 or self.classes < 5:
            return None
        return float(self.values[1] / max(self.values[0], self.smallest))

    def of_sign(self, sign: int) -> Scan:
        """Keep what is of one sign of λ."""
        kept = np.sign(self.minima) == sign
        return _sorted(
            self.minima[kept],
            self.values[kept],
            self.is_possible[kept],
            self.explained[np.sign(self.explained) == sign],
            self.smallest,
            self.classes,
        )

    @classmethod
    def of(cls, layer: LastLayer) -> Scan:
        """Scan both signs of λ."""
        few = _Few.of(layer)
        likely = layer.sign_of_features()
        parts = []
        for sign in (likely, -likely):
            for grid in few.grids(sign):
                parts.append(few.scan(grid))
                if few.is_enough(*parts[-1][1:3]):
                    break
            else:
                continue
            break
        minima, values, floors, explained = map(np.concatenate, zip(*parts, strict=True))
        smallest = layer.eps**2 * float(layer.alpha @ layer.alpha)
        possible = values <= NEAR * floors
        return _sorted(minima, values, possible, explained, smallest, len(layer.alpha))


def _sorted(
    minima: Array,
    values: Array,
    is_possible: NDArray[np.bool_],
    explained: Array,
    smallest: float,
    classes: int,
) -> Scan:
    order = np.argsort(values, kind="stable")
    is_possible = is_possible[order]
    is_possible[:1] = True
    return Scan(minima[order], values[order], is_possible, smallest, explained, classes)


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

    def scan(self, grid: Array) -> tuple[Array, Array, Array, Array]:
        """Return φ's minima on a grid, φ and its expected value there, and `explained`."""
        labels = self.labels(grid)
        # A second class with a small share makes a narrow dip, at the bottom of φ for one class.
        one = _minima(tie_variance(grid, labels, 1))
        fine = np.multiply.outer(
            grid[one], np.exp((np.arange(2 * FINER) - FINER + 0.5) / FINER * STEP)
        )
        points = np.concatenate([grid, fine.ravel()])
        order = np.argsort(np.abs(points), kind="stable")
        points = points[order]
        labels = np.concatenate([labels, self.labels(fine.ravel())])[order]
        explained = np.empty(0)
        minima, values = [], []
        for objective in _objectives(len(self.layer.alpha)):
            phi = objective(points, labels)
            inner = _minima(phi)
            found, least = points[inner], phi[inner]
            sharp = self._may_vanish(
                found, least, labels[inner], points[inner + 1] / points[inner - 1]
            )
            least = np.where(
                sharp, least, least / 4
            )  # how far φ may fall on the way to the minimum
            found[sharp] = self._zoom(objective, points[inner - 1][sharp], points[inner + 1][sharp])
            least[sharp] = objective(found[sharp], self.labels(found[sharp]))
            minima += [found, points[-1:]]  # and the plateau, where ŷ is nearly hard
            values += [least, phi[-1:]]
            near = points[
                (phi <= BAR**2 * self._floor(points)) & self._is_on_simplex(points, labels)
            ]
            explained = np.concatenate([explained, near])
        found = np.concatenate(minima)
        inside = self._is_on_simplex(found, self.labels(found))
        found = found[inside]
        return found, np.concatenate(values)[inside], self._floor(found), explained

    def grids(self, sign: int) -> Iterator[Array]:
        """Yield the grid of λ of one sign: whole, or with many classes in parts, from small to large.

        |λ| is at least ‖α‖₁/2, since ‖p − y‖₁ is at most 2.
        """
        logits = np.sort(sign * self.layer.logits)
        first = np.log(np.abs(self.layer.alpha).sum() / 2) - STEP
        lead = max(logits[-1] - logits[-2], np.finfo(float).tiny)
        last = min(first + DECADES * np.log(10), max(np.log(SATURATED / lead), first + 1))
        grid = sign * np.exp(np.arange(first, last + STEP, STEP))
        length = PART if len(self.classes) < len(self.layer.alpha) else len(grid)
        for start in range(0, len(grid) - 2, length):
            yield grid[start : start + length + 2]

    def is_enough(self, values: Array, floors: Array) -> bool:
        """Say whether a root is found and there can't be another.

        It would have to satisfy as many equations as there are classes by chance.
        """
        is_whole = len(self.classes) == len(self.layer.alpha)
        return not (is_whole or self.layer.is_noisy) and bool((values <= NEAR * floors).any())

    def _may_vanish(
        self, scales: Array, phi: Array, labels: Array, widths: Array
    ) -> NDArray[np.bool_]:
        """Say where φ can be 0 within a grid's step, going by the slope of `λ p(λ) − α`."""
        if len(self.layer.alpha) < 5:
            return np.ones(len(scales), dtype=bool)
        logits = self.layer.logits[self.classes]
        p = self.p(scales)
        by_log = scales[:, None] * p * (1 + np.multiply.outer(scales, logits))
        by_log -= scales[:, None] * p * (scales * (p @ logits) / p.sum(axis=1))[:, None]
        slope = by_log.std(axis=1)
        return np.asarray(np.sqrt(phi) <= 2 * np.log(widths) * slope)

    def _floor(self, scales: Array) -> Array:
        """Return what φ is expected to be at a root, (N,)."""
        tied = max(len(self.classes) - 2, 1)
        variance = expected_variance(self.layer, scales, self.p(scales), self.classes)
        return np.asarray(np.partition(variance, tied - 1, axis=-1)[:, :tied].mean(axis=-1))

    def _is_on_simplex(self, scales: Array, labels: Array) -> NDArray[np.bool_]:
        slack = 1e-3 + 10 * self.layer.sigma / np.abs(scales)
        return np.asarray((labels.min(axis=-1) > -slack) & (labels.max(axis=-1) < 1 + slack))

    def _zoom(self, objective: Objective, low: Array, high: Array) -> Array:
        """Narrow all brackets (low, high) of λ at once, eightfold a pass, to 1e-7 in log λ."""
        for _ in range(7 if len(low) else 0):
            points = np.geomspace(low, high, 17)
            values = objective(points.ravel(), self.labels(points.ravel())).reshape(points.shape)
            least = values.argmin(axis=0).clip(1, 15)
            low, high = (points[least + k, np.arange(len(least))] for k in (-1, 1))
        return np.sign(low) * np.sqrt(low * high)


def _minima(values: Array) -> NDArray[np.intp]:
    """Return the indices of the local minima, but for the ends and the ripple on plateaus."""
    deeper = values[1:-1] * (1 + 1e-9)
    return np.flatnonzero((deeper < values[:-2]) & (deeper <= values[2:])) + 1


def _objectives(classes: int) -> list[Objective]:
    """Return the functions of λ and ŷ whose minima hold the root.

    From five classes on one does. Below, too few entries are tied: a smoothed label may leave only
    its own tie, a mixed one only a zero, so these are searched too.
    """
    if classes >= 5:
        return [tie_variance]
    few: list[Objective] = [lambda scales, labels: tie_variance(scales, labels, 1), _smallest]
    return [tie_variance, *few] if classes == 4 else few


def _smallest(scales: Array, labels: Array) -> Array:
    return np.asarray((scales * labels.min(axis=-1)) ** 2)
