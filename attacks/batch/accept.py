"""Step 4: which rays are features, judged blindly: by their geometry, and by a label each.

A feature x of the batch has its `p − y` in the column space of G, whatever the other rays are. So
with x = s d, d the ray's direction, and T orthonormal, `Tᵀ G_w = 0`,

    Tᵀ diag(1/r) (softmax(s W d) − y) = 0,      y = 1/K + Σ_j a_j (e_j − 1/K),

with one class j (hard, smoothing) or two (mixup, CutMix): K − B equations for s and a. For every s on
a grid the best class, or pair of classes, is the least-squares one; Gauss-Newton on (s, a) does the
rest. Where K − B is small, every other ray f adds an equation: its dual vector `u_f = U S⁻¹ q_f`
is orthogonal to all `(p_b − y_b) / r`, b ≠ f.

The residual is relative to `‖(p − y) / r‖`, which tells the trivial root p = y apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import softmax

from attacks.batch.sharpen import Ray
from attacks.batch.subspace import Array, Subspace
from attacks.label_fit import BAR, label_models, left_inverse
from attacks.types import Knowledge

LEAST_SPREAD = 1e-3
"""Second smallest singular value of V_Z below which the zeros leave the ray open."""
SAME = 1e-5
"""Distance of directions that are one ray."""
LEAST_TESTS = {1: 4, 2: 8}
"""Equations that a label of one or two classes has to satisfy, with its 2 or 3 unknowns."""
NEAR = np.exp(np.arange(-1.0, 1.01, 0.2))
"""Scales to try, of those of the features already found."""
COARSE = np.exp(np.arange(np.log(0.05), np.log(60), 0.2))
"""Scales to try, as the largest logit's distance from the mean."""
FINE = np.concatenate([np.exp(np.arange(np.log(0.1), np.log(4), 0.07)), np.arange(4.0, 50.0, 0.3)])
"""The same, for confident networks: where logits are large, the root's neighbourhood is small."""
STARTS, CLASS_CHANGES, NEWTON_STEPS = 4, 4, 12
ON_SIMPLEX = 1e-3
"""How far a label may be outside [0, 1]."""
LIMIT = 3.0
"""The residual's limit in units of the space's precision, and its bounds: false rays stay above
1e-4."""
AGREEMENT, MOST_AGREEMENT = 10.0, 1e-2
"""By how much gradient factors may differ, in units of the space's precision, and at most."""
TIGHTEST, LOOSEST = 1e-9, 3e-4
MOST_BAR = 3e-3
"""Largest error bar of a label, by the size of its residual: on a saturated network,
p − y may lie along the label's own direction, and no test of it sees the share."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """A label that explains a ray.

    Args:
        scale: s, the feature is `s · direction`.
        label: y, (K,).
        mixture: `(p − y) / r`, (K,).
        residual: of the tests, relative to the mixture.
        bar: by how much a residual of 1 changes the label, to first order.
        factor: the factor on the gradient (clipping) that the ray's own dual then shows.
    """

    scale: float
    label: Array
    mixture: Array
    residual: float
    bar: float = np.inf
    factor: float = np.nan


@dataclass(frozen=True, eq=False)
class Example:
    """A ray that is taken for a feature; without an explanation while too few tests can be made."""

    ray: Ray
    explanation: Explanation | None = None


@dataclass(frozen=True, eq=False)
class LabelTests:
    """`A (p − y) = 0`, with `A = Tᵀ diag(1/r) (1 − 11ᵀ/K)`.

    Args:
        matrix: A, (t, K).
        rows: r, (K,).
    """

    matrix: Array
    rows: Array

    @classmethod
    def of(cls, space: Subspace, others: Sequence[Ray]) -> LabelTests:
        """Take the complement of the column space and the duals of other rays."""
        tests = space.complement.T
        if others:
            duals = np.array([space.left @ (ray.q / space.values) for ray in others])
            tests = np.vstack([tests, duals / np.linalg.norm(duals, axis=1, keepdims=True)])
        matrix = tests / space.rows
        return cls(matrix - matrix.mean(axis=1, keepdims=True), space.rows)

    def suffice_for(self, classes: int) -> bool:
        """Say whether a label of so many classes is tested; one equation is always satisfied."""
        return len(self.matrix) - 1 >= LEAST_TESTS[classes]

    @cached_property
    def norms(self) -> Array:
        """Norms of A's columns, (K,), floored."""
        norms = np.linalg.norm(self.matrix, axis=0)
        return np.asarray(np.maximum(norms, 1e-10 * norms.max()))

    @cached_property
    def correlations(self) -> Array:
        """Cosines between A's columns, (K, K)."""
        unit = self.matrix / self.norms
        return unit.T @ unit

    @cached_property
    def determinants(self) -> Array:
        """`1 / (1 − cosine²)` for every pair below the diagonal, 0 elsewhere; (K, K)."""
        return np.tril(1 / np.maximum(1 - self.correlations**2, 1e-9), -1)

    def best_classes(self, along: Array, number: int) -> tuple[int, ...]:
        """Return the one or two classes that explain most, given the target along A's columns."""
        if number == 1:
            return (int(along.argmax()),)
        gain = self.correlations * np.multiply.outer(along, -2 * along)
        gain += along**2
        gain += (along**2)[:, None]
        gain *= self.determinants
        return divmod(int(gain.argmax()), len(along))


def accept(
    space: Subspace,
    examples: Sequence[Example],
    candidates: Iterable[Ray | None],
    refused: list[Ray],
    knowledge: Knowledge,
) -> list[Example]:
    """Return the new examples among the candidates; a ray whose label fails goes to `refused`."""
    tests = LabelTests.of(space, _witnesses(space, examples))
    known = [e.ray.direction for e in examples] + [ray.direction for ray in refused]
    fresh: list[Example] = []
    for ray in candidates:
        if ray is None or ray.spread < LEAST_SPREAD or _is_among(ray.direction, known):
            continue
        known.append(ray.direction)
        fresh.append(Example(ray, explain(space, ray, tests, _scales(examples), knowledge)))
    factor = gradient_factor(space, [*examples, *fresh])
    agreeing = [_agreeing(space, example, factor) for example in fresh]
    if not tests.suffice_for(2):
        return agreeing
    refused += [example.ray for example in agreeing if example.explanation is None]
    return [example for example in agreeing if example.explanation is not None]


def certify(
    space: Subspace, examples: Sequence[Example], knowledge: Knowledge
) -> tuple[Example, ...]:
    """Explain the examples that had too few tests, each by the duals of others."""
    answer = []
    for example in examples:
        if example.explanation is None:
            others = [e for e in examples if e is not example]
            tests = LabelTests.of(space, _witnesses(space, others))
            found = explain(space, example.ray, tests, _scales(examples), knowledge)
            example = Example(example.ray, found)
        answer.append(example)
    factor = gradient_factor(space, answer)
    return tuple(_agreeing(space, example, factor) for example in answer)


def gradient_factor(space: Subspace, examples: Sequence[Example]) -> float | None:
    """Return the factor on the gradient on which the examples agree; None if they don't.

    It is 1 unless at least three agree on another: `u_bᵀ (p_b − y_b) / r = factor · B / s`, u_b the
    ray's own dual, holds for every true example with the same factor.
    """
    factors = np.array([e.explanation.factor for e in examples if e.explanation is not None])
    for factor in (1.0, *sorted(factors)):
        agreeing = np.abs(factors / factor - 1) <= _agreement(space)
        if agreeing.sum() >= (1 if factor == 1.0 else 3):
            return float(factor)
    return None


def _agreement(space: Subspace) -> float:
    return min(max(AGREEMENT * space.precision, TIGHTEST), MOST_AGREEMENT)


def _agreeing(space: Subspace, example: Example, factor: float | None) -> Example:
    """Drop an explanation with another gradient factor."""
    found = example.explanation
    if found is None or (factor and abs(found.factor / factor - 1) <= _agreement(space)):
        return example
    return Example(example.ray)


def _is_among(direction: Array, known: Sequence[Array]) -> bool:
    return bool(known) and bool(np.linalg.norm(np.array(known) - direction, axis=1).min() < SAME)


def _witnesses(space: Subspace, examples: Sequence[Example]) -> list[Ray]:
    """Return the rays whose duals test labels: those that are explained, all if they are few."""
    explained = [e.ray for e in examples if e.explanation is not None]
    enough = space.complement.shape[1] - 1 + len(explained) >= LEAST_TESTS[2]
    return explained if enough else [e.ray for e in examples]


def explain(
    space: Subspace, ray: Ray, tests: LabelTests, scales: Array, knowledge: Knowledge
) -> Explanation | None:
    """Find a label that explains a ray, the simplest first; None if none does, or is tested.

    Args:
        space: the whole.
        ray: a direction.
        tests: of labels.
        scales: of the features already found.
        knowledge: which labels are considered.
    """
    logits = space.logit_weight @ ray.direction
    models = label_models(knowledge)
    totals = {model.total for model in models}
    total = totals.pop() if len(totals) == 1 else None
    limit = min(max(LIMIT * space.precision, TIGHTEST), LOOSEST)
    if space.source.has_bias:
        grids = [np.array([1 / ray.direction[-1]])] if ray.direction[-1] > 0 else []
    else:
        unit = 1 / np.abs(logits - logits.mean()).max()
        grids = [np.median(scales) * NEAR] if len(scales) else []
        grids += [COARSE * unit, FINE * unit]
    for grid in grids:
        for number in sorted({1 + model.pair for model in models}):
            if tests.suffice_for(number):
                found = _search(tests, logits, grid, number, total)
                if found and found.residual <= limit and found.bar * found.residual <= MOST_BAR:
                    dual = space.left @ (ray.q / space.values)
                    size = space.divisor
                    return dataclasses.replace(
                        found, factor=found.scale * float(dual @ found.mixture) / size
                    )
    return None


def _scales(examples: Sequence[Example]) -> Array:
    return np.array([e.explanation.scale for e in examples if e.explanation is not None])


def _search(
    tests: LabelTests, logits: Array, scales: Array, number: int, total: float | None
) -> Explanation | None:
    """Return the best explanation by so many classes, from the minima over a grid of scales."""
    targets = softmax(np.outer(scales, logits), axis=1) @ tests.matrix.T
    along = targets @ tests.matrix / tests.norms
    starts, misfits = [], []
    for scale, row in zip(scales, along, strict=True):
        classes = tests.best_classes(row, number)
        starts.append((float(scale), classes))
        misfits.append(_fit(tests, logits, float(scale), classes, total)[0].residual)
    best = None
    for index in _minima(np.array(misfits))[:STARTS]:
        found = _follow(tests, logits, *starts[index], total)
        if found is not None and (best is None or found.residual < best.residual):
            best = found
    return best


def _follow(
    tests: LabelTests, logits: Array, scale: float, classes: tuple[int, ...], total: float | None
) -> Explanation | None:
    """Go on from a scale by Gauss-Newton; a small second class shows only near the root."""
    start = scale
    for _ in range(CLASS_CHANGES):
        for _ in range(NEWTON_STEPS):
            found, step = _fit(tests, logits, scale, classes, total)
            step = float(np.clip(step, -0.2 * scale, 0.2 * scale))
            if abs(step) < 1e-13 * scale or not 0.3 < (scale + step) / start < 3:
                break
            scale += step
        along = tests.matrix.T @ (tests.matrix @ softmax(scale * logits)) / tests.norms
        before, classes = classes, tests.best_classes(along, len(classes))
        if set(classes) == set(before):
            break
    found, _ = _fit(tests, logits, scale, classes, total)
    inside = found.label.min() >= -ON_SIMPLEX and found.label.max() <= 1 + ON_SIMPLEX
    bar = _label_bar(tests, logits, found, classes, total)
    return dataclasses.replace(found, bar=bar) if inside else None


def _label_bar(
    tests: LabelTests,
    logits: Array,
    found: Explanation,
    classes: tuple[int, ...],
    total: float | None,
) -> float:
    basis = _model(len(logits), classes, total)[1]
    p = softmax(found.scale * logits)
    slope = tests.matrix @ (p * (logits - p @ logits))
    inverse = left_inverse(np.column_stack([-slope, tests.matrix @ basis]))[1:]
    change = np.linalg.norm(basis @ inverse, axis=1).max(initial=0.0)
    freedom = max(len(inverse.T) - len(inverse) - 1, 1)
    return float(BAR * change * np.linalg.norm(found.mixture) / np.sqrt(freedom))


def _fit(
    tests: LabelTests, logits: Array, scale: float, classes: tuple[int, ...], total: float | None
) -> tuple[Explanation, float]:
    """Fit the classes' shares at a scale; return them and the Gauss-Newton step of the scale."""
    p = softmax(scale * logits)
    label, basis = _model(len(p), classes, total)
    slope = tests.matrix @ (p * (logits - p @ logits))
    columns = tests.matrix @ basis
    target = tests.matrix @ (p - label)
    shares = np.linalg.lstsq(columns, target, rcond=None)[0]
    label = label + basis @ shares
    mixture = (p - label) / tests.rows
    rest = target - columns @ shares
    residual = float(np.linalg.norm(rest) / max(np.linalg.norm(mixture), 1e-300))
    # The shares follow the scale: project them out of the slope.
    free = slope - columns @ np.linalg.lstsq(columns, slope, rcond=None)[0]
    step = -float(free @ rest) / max(float(free @ free), 1e-300)
    return Explanation(scale, label, mixture, residual), step


def _model(size: int, classes: tuple[int, ...], total: float | None) -> tuple[Array, Array]:
    """Return y₀ (K,) and Y (K, n) such that `y = y₀ + Y a`; the shares sum to a known `total`."""
    basis = np.full((size, len(classes)), -1 / size)
    basis[classes, range(len(classes))] += 1
    label = np.full(size, 1 / size)
    if total is None:
        return label, basis
    return label + total * basis[:, -1], basis[:, :-1] - basis[:, -1:]


def _minima(values: Array) -> Array:
    """Return the indices of the local minima, the ends left out, the lowest first."""
    if len(values) == 1:
        return np.zeros(1, dtype=int)
    inner = np.flatnonzero((values[1:-1] <= values[:-2]) & (values[1:-1] <= values[2:])) + 1
    return inner[np.argsort(values[inner], kind="stable")]
