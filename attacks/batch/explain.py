"""A label that explains a ray: what the gradient's column space says of one example's `p − y`.

A feature x of the batch has its `p − y` in the column space of G, whatever the other rays are. So
with x = s d, d the ray's direction, and T orthonormal, `Tᵀ G_w = 0`,

    Tᵀ diag(1/r) (softmax(s W d) − y) = 0,      y = 1/K + Σ_j a_j (e_j − 1/K),

with one class j (hard, smoothing) or two (mixup, CutMix): K − B equations for s and a. Every other
ray f that is found adds one: its dual vector `u_f = U S⁻¹ q_f` is orthogonal to all
`(p_b − y_b) / r`, b ≠ f. For every s on a grid the best class, or pair of classes, is the
least-squares one; Gauss-Newton on (s, a) does the rest.

The residual is relative to `‖(p − y) / r‖`, which tells the trivial root p = y apart. And the ray's
own dual shows the factor c on the gradient, `u_bᵀ (p_b − y_b) / r = B / (c s)`, the same c (1, but
for clipping) for every true explanation of every ray.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.batch.label_tests import LabelTests
from attacks.batch.sharpen import Ray
from attacks.batch.subspace import Subspace
from attacks.facts import Told
from attacks.numerics.gauss_newton import gauss_newton
from attacks.numerics.least_squares import BAR, left_inverse
from attacks.numerics.search import minima_of
from attacks.numerics.softmax import softmax
from attacks.one_example.label_model import LabelModel, label_models
from attacks.victim.gradients import Array

SCALE_MARGIN = 1.0
"""How far beyond the scales of the features already found others are tried, in log s."""
COARSE = np.exp(np.arange(np.log(0.05), np.log(60), 0.2))
"""Scales to try, as the largest logit's distance from the mean."""
FINE_STEP = 0.3
LEAST_STEP = 1e-3
"""In log s, however large the logits: beyond, a network is saturated."""
FINE = np.append(np.exp(np.arange(np.log(0.1), np.log(4), 0.07)), np.arange(4, 50, FINE_STEP))
"""The same, for confident networks: where logits are large, the root's neighbourhood is small."""
STARTS, CLASS_CHANGES, NEWTON_STEPS = 4, 4, 12
ON_SIMPLEX = 1e-3
"""How far a label may be outside [0, 1]."""
LIMIT = 3.0
"""The residual's limit in units of the space's precision, and its bounds: false rays stay above
1e-4."""
LIMIT_BOUNDS = (1e-6, 3e-4)
EXACT, BETTER = 1e-6, 3.0
"""A residual that nothing needs to better, and by which factor another is clearly better."""
ROUNDINGS = 30.0
"""The same, of the client's own roundings of p and y."""
MOST_FACTOR = 1e9
"""Largest factor on a gradient, and its inverse."""
SMALL_SHARE = 1e-2
"""A second class with less may stand for another one."""
MOST_BAR = 3e-3
"""Largest error bar of a label that is taken: on a saturated network, p − y may lie along the
label's own direction, and no test of it sees the share."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """A label that explains a ray.

    Args:
        scale: s, the feature is `s · direction`.
        label: y, (K,).
        mixture: `(p − y) / r`, (K,).
        residual: of the tests, relative to the mixture.
        bar: error bar of the label, by the size of the residual.
        factor: c, the factor on the gradient that the ray's own dual then shows.
    """

    scale: float
    label: Array
    mixture: Array
    residual: float
    bar: float = np.inf
    factor: float = np.nan


def explain(
    space: Subspace, ray: Ray, tests: LabelTests, scales: Array, told: Told
) -> list[Explanation]:
    """Find the labels that explain a ray; none if no label does, or too few tests can be made.

    Args:
        space: the whole.
        ray: a direction.
        tests: of labels.
        scales: of the features already found.
        told: which labels are considered.

    Returns:
        The explanations at the first grid of scales that has any, the simplest first.
    """
    logits = space.logit_weight @ ray.direction
    known = label_models(told)
    totals = {model.total for model in known}
    total = totals.pop() if len(totals) == 1 else None
    models = [LabelModel(pair, total) for pair in sorted({model.pair for model in known})]
    least = max(LIMIT * space.precision, ROUNDINGS * space.source.eps)
    limit = float(np.clip(least, *LIMIT_BOUNDS))
    dual = space.left @ (ray.q / space.values) / space.divisor
    is_free = not space.source.has_bias  # a bias fixes the scale, where small logits wouldn't
    for grid in _grids(space, ray, logits, scales):
        found: list[Explanation] = []
        for model in models:
            enough = tests.suffice_for(1 + model.pair)
            if enough and not any(one.residual <= EXACT for one in found):
                found += _search(tests, logits, grid, model, is_free)
        # One class may seem to do where two are right, and fit better.
        found = [one for one in (_with_factor(one, dual) for one in found) if one is not None]
        least = min((one.residual for one in found), default=0.0)
        found = [
            one
            for one in found
            if one.residual <= min(limit, max(BETTER * least, EXACT)) and one.bar <= MOST_BAR
        ]
        if found:
            return found
    return []


def _with_factor(one: Explanation, dual: Array) -> Explanation | None:
    """Add the gradient's factor; None where p = y, which any gradient's tests are blind to."""
    inverse = one.scale * float(dual @ one.mixture)
    if not 1 / MOST_FACTOR < inverse < MOST_FACTOR:
        return None
    return dataclasses.replace(one, factor=1 / inverse)


def _grids(space: Subspace, ray: Ray, logits: Array, scales: Array) -> Iterator[Array]:
    """Yield the scales to try: the bias's, or those near what is known, then wider ones."""
    if space.source.has_bias:
        one = float((space.columns * ray.direction)[-1])  # a bias's own feature
        if one > 0:
            yield np.array([1 / one])
        return
    largest = float(np.abs(logits - logits.mean()).max())
    unit = 1 / max(largest, 1e-300)
    if not len(scales):
        yield COARSE * unit
        yield FINE * unit
        return
    low, high = np.log(scales.min()) - SCALE_MARGIN, np.log(scales.max()) + SCALE_MARGIN
    for step in (0.2, max(LEAST_STEP, min(0.1, FINE_STEP * unit / float(np.median(scales))))):
        yield np.exp(np.arange(low, high + step, step))


def _search(
    tests: LabelTests,
    logits: Array,
    scales: Array,
    model: LabelModel,
    is_free: bool,
) -> list[Explanation]:
    """Return what explains best by so many classes, from the minima over a grid of scales.

    Between the grid's scales only if they are free.
    """
    targets = softmax(np.outer(scales, logits)) @ tests.matrix.T
    along = targets @ tests.matrix / tests.norms
    starts = [
        (float(scale), tests.best_classes(row, 1 + model.pair))
        for scale, row in zip(scales, along, strict=True)
    ]
    misfits = [_fit(tests, logits, *start, model)[0].residual for start in starts]
    found: list[Explanation] = []
    for index in _lowest(np.array(misfits)):
        one = _follow(tests, logits, starts[index], model, is_free)
        if one is not None and not any(np.abs(one.label - f.label).max() < MOST_BAR for f in found):
            found.append(one)
    return found


def _follow(
    tests: LabelTests,
    logits: Array,
    start: tuple[float, tuple[int, ...]],
    model: LabelModel,
    is_free: bool,
) -> Explanation | None:
    """Go on from a start by Gauss-Newton; a small second class shows only near the root."""
    scale, classes = start

    def step(x: Array) -> Array | None:
        if not 0.3 < x[0] / start[0] < 3:
            return None
        return np.array([_fit(tests, logits, float(x[0]), classes, model)[1]])

    for _ in range(CLASS_CHANGES):
        if is_free:
            x, _ = gauss_newton(
                step, np.array([scale]), scales=1, longest=0.2, tolerance=1e-13, most=NEWTON_STEPS
            )
            scale = float(x[0])
        along = tests.matrix.T @ (tests.matrix @ softmax(scale * logits)) / tests.norms
        before, classes = classes, tests.best_classes(along, len(classes))
        if set(classes) == set(before):
            break
    found, _ = _fit(tests, logits, scale, classes, model)
    inside = found.label.min() >= -ON_SIMPLEX and found.label.max() <= 1 + ON_SIMPLEX
    bar = _label_bar(tests, logits, found, classes, model)
    return dataclasses.replace(found, bar=bar) if inside else None


def _label_bar(
    tests: LabelTests,
    logits: Array,
    found: Explanation,
    classes: tuple[int, ...],
    model: LabelModel,
) -> float:
    """Return the error bar of a label, by its residual; a class alone may have a hidden second."""
    basis = model.basis(len(logits), classes[0], classes[-1])[1]
    p = softmax(found.scale * logits)
    slope = tests.matrix @ (p * (logits - p @ logits))
    design = np.column_stack([-slope, tests.matrix @ basis])
    freedom = max(len(design) - design.shape[1] - 1, 1)
    std = found.residual * float(np.linalg.norm(found.mixture)) / np.sqrt(freedom)
    change = np.linalg.norm(basis @ left_inverse(design)[1:], axis=1).max(initial=0.0)
    second = min(found.label[list(classes)]) - np.median(found.label)
    if len(classes) == 1 or second < SMALL_SHARE:
        others = np.delete(tests.matrix, classes, axis=1)
        along = np.linalg.qr(design)[0]
        seen = float(np.linalg.norm(others - along @ (along.T @ others), axis=0).min())
        change = max(change, 1 / max(seen, 1e-100))
    return float(BAR * std * change)


def _fit(
    tests: LabelTests, logits: Array, scale: float, classes: tuple[int, ...], model: LabelModel
) -> tuple[Explanation, float]:
    """Fit the classes' shares at a scale; return them and the Gauss-Newton step of the scale."""
    p = softmax(scale * logits)
    label, basis = model.basis(len(p), classes[0], classes[-1])
    slope = tests.matrix @ (p * (logits - p @ logits))
    columns = tests.matrix @ basis
    target = tests.matrix @ (p - label)
    shares = np.linalg.lstsq(columns, target, rcond=None)[0]
    label = label + basis @ shares
    mixture = (p - label) / tests.rows
    rest = target - columns @ shares
    residual = float(np.linalg.norm(rest)) / max(float(np.linalg.norm(mixture)), 1e-300)
    # The shares follow the scale: project them out of the slope.
    free = slope - columns @ np.linalg.lstsq(columns, slope, rcond=None)[0]
    step = -float(free @ rest) / max(float(free @ free), 1e-300)
    return Explanation(scale, label, mixture, residual), step


def _lowest(values: Array) -> NDArray[np.intp]:
    """Return the indices of the few lowest local minima; of a single value, its own."""
    if len(values) == 1:
        return np.zeros(1, dtype=np.intp)
    inner = minima_of(values)
    return inner[np.argsort(values[inner], kind="stable")][:STARTS]
