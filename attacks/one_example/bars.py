"""Error bars of a fitted label that allow for everything the attacker doesn't know.

A hard label, say, explains a gradient. Whether it is *the* label depends on what else would: a
smoothed one, a second class (whichever it is), a gradient that was multiplied by a factor c, as by
clipping: `α = c λ (p − y)`. So the bars are those of the fit's model widened by all of these.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from itertools import combinations

import numpy as np

from attacks.numerics.least_squares import BAR, left_inverse, standard_errors
from attacks.one_example.fit import Fit, Linearised
from attacks.one_example.label_model import LabelModel, label_models
from attacks.one_example.problem import Problem
from attacks.types import GradientLeak
from attacks.victim.gradients import Array

COINCIDENCE = 10.0
"""By how much smaller than the tolerance a bar must be where fitting at all is the evidence."""


class Unknown(Enum):
    """What an attacker may not know, besides λ."""

    SMOOTHING = 1
    SECOND_CLASS = 2
    GRADIENT_SCALE = 3


def unknowns(leak: GradientLeak) -> frozenset[Unknown]:
    """Return what the attacker doesn't know."""
    found = set()
    for model in label_models(leak.told):
        if model.total is None:
            found.add(Unknown.SMOOTHING)
        if model.pair:
            found.add(Unknown.SECOND_CLASS)
    if not _is_unclipped(leak):
        found.add(Unknown.GRADIENT_SCALE)
    return frozenset(found)


def _is_unclipped(leak: GradientLeak) -> bool:
    """Say whether the norms that are told are known not to have bound this update.

    Without a known norm the gradient may have been multiplied by anything.
    """
    told = leak.told
    bounds = [
        (told.gradient_norm, 1.0),
        (told.clipping_norm, leak.lr),
    ]
    given = [(norm, lr) for norm, lr in bounds if norm is not None]
    if not given or told.is_scaled or told.has_lost_entries:
        return False
    size = sum(g.numel() for g in leak.gradients.values())
    square = sum(float(g.double().square().sum()) for g in leak.gradients.values())
    return all(lr and _is_within(norm, lr, square, size, told.noise_std) for norm, lr in given)


def _is_within(norm: float, lr: float, square: float, size: int, noise_std: float | None) -> bool:
    """Say whether `lr · g` was shorter than a norm before noise of a known size came to it."""
    noise, update = noise_std or 0.0, lr**2 * square
    # Four standard deviations of the squared norm's noise, so that chance doesn't decide; a clipped
    # update has the norm itself, up to rounding.
    spread = 4 * noise * np.sqrt(4 * update + 2 * size * noise**2)
    return bool(update - size * noise**2 + spread < 0.98 * norm**2)


def widest_bars(problem: Problem, fit: Fit, unknown: frozenset[Unknown]) -> tuple[float, float]:
    """Return the error bars of the label (L∞) and, relative, of λ.

    Where all unknowns at once would leave no equation as a test, the evidence is that a simple
    model fits at all, hardly a coincidence without noise. Then it is widened by as many unknowns at
    a time as there are equations to spare; and if there is but one, the bars are stretched: a false
    model fits with a probability of about its bar, 1 in 1,000 where the stretched bar is 1e-2.

    Args:
        problem: the rank-one problem.
        fit: the simplest model that fits.
        unknown: what isn't known.
    """
    own = set()
    if fit.model.total is None:
        own.add(Unknown.SMOOTHING)
    if fit.model.pair:
        own.add(Unknown.SECOND_CLASS)
    if fit.is_scaled:
        own.add(Unknown.GRADIENT_SCALE)
    others = sorted(unknown - own, key=lambda u: u.value)
    number = len(others) if problem.is_noisy else min(len(others), fit.surplus)
    bars = [_bars(problem, fit, own | set(some)) for some in combinations(others, number)]
    # A misfit larger than expected means errors larger than expected, and as much wider bars.
    stretch = max(1.0, fit.residual) * (COINCIDENCE if others and fit.surplus == 1 else 1.0)
    return stretch * max(bar for bar, _ in bars), stretch * max(bar for _, bar in bars)


def _bars(problem: Problem, fit: Fit, free: Collection[Unknown]) -> tuple[float, float]:
    """Widen a fit, to first order: 4 standard deviations and the step to the widened optimum."""
    classes, (a, b) = len(fit.label), fit.classes
    is_smooth = Unknown.SMOOTHING in free
    moves = LabelModel(fit.model.pair, None if is_smooth else 1.0).basis(classes, a, b)[1]
    is_scaled = Unknown.GRADIENT_SCALE in free
    line = Linearised.at(problem, fit.λ, fit.s, fit.label, moves, is_scaled)
    inverse = left_inverse(line.design)
    # What is wanted of the parameters: the label's entries, and λ, relative.
    wanted = np.zeros((classes + 1, line.design.shape[1]))
    wanted[:classes, 1 + is_scaled :] = moves
    wanted[classes, 0] = 1 / fit.λ
    std = standard_errors(wanted, inverse)
    step = wanted @ (inverse @ line.target)
    bar = BAR * std + np.abs(step)
    label_bar, scale_bar = float(bar[:-1].max()), float(bar[-1])
    if Unknown.SECOND_CLASS in free and not fit.model.pair:
        # A class's share comes off all entries where ε is free, and else off the other class.
        start = np.full(classes, 1 / classes if is_smooth else 0.0)
        start[a] += not is_smooth
        tied = 1 if a == 0 else 0
        few = wanted[[a, tied, classes]]
        # All entries but a's are alike, but that of the second class itself.
        effects, along, left = _second_class(line, fit, few, start, inverse)
        effects[:2] -= start[[a, tied], None]
        effects = np.vstack([effects, effects[1] + 1])
        some = [a, tied, classes, tied]
        spread = np.sqrt(np.square(std[some])[:, None] + effects**2 / left)
        bars = (BAR * spread + np.abs(step[some][:, None] + effects * along / left)).max(axis=1)
        label_bar = max(label_bar, *bars[[0, 1, 3]].tolist())
        scale_bar = max(scale_bar, float(bars[2]))
    # Noise makes the length of the feature's part of g uncertain, too.
    part = float(np.linalg.norm(problem.g[: problem.width]))
    length = BAR * float(problem.σ_g.max()) / part if part else np.nan
    return label_bar, scale_bar + length


def _second_class(
    line: Linearised, fit: Fit, wanted: Array, start: Array, inverse: Array
) -> tuple[Array, Array, Array]:
    """Give one more class a share, for each class k in turn but a, by block elimination.

    Each adds a column `d_k = −whitened (e_k − start)/s`; all of them are dealt with through
    products with the whitening's adjoint, without a (K, K) matrix.

    Returns:
        The effects that a unit share has on what is wanted, through the other parameters,
        (n, K-1); and of what is left of d_k outside the design, the product with the target and the
        squared norm, (K-1,) each.
    """
    deviation = line.deviation
    others = np.arange(len(fit.label)) != fit.classes[0]
    basis = np.linalg.qr(line.design)[0]
    from_start = deviation.whiten(start, 0.0)
    outside = line.target - basis @ (basis.T @ line.target)
    vectors = np.column_stack([inverse.T, basis, outside, from_start])
    products = (deviation.adjoint(vectors) - from_start @ vectors) / -fit.s
    count = len(inverse)
    shared, inside = products[others, :count], products[others, count : 2 * count]
    along, to_start = products[others, -2], products[others, -1]
    # ‖d_k‖² = (‖whitened e_k‖² − 2 e_kᵀ… start + ‖whitened start‖²)/s², and to_start holds
    # −(e_kᵀ… start − ‖whitened start‖²)/s.
    square = float(from_start @ from_start)
    whole = (deviation.precision()[others] - square) / fit.s**2 + 2 * to_start / fit.s
    left = np.maximum(whole - np.square(inside).sum(axis=1), 1e-14 * np.abs(whole))
    return -wanted @ shared.T, along, left
