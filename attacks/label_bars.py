"""Error bars of a fitted label that allow for everything the attacker doesn't know.

A hard label, say, explains a gradient. Whether it is *the* label depends on what else would: a
smoothed one, a second class (whichever it is), a gradient that was multiplied by a factor c, as by
clipping: `α = c λ (p − y)`. So the bars are those of the fit's model widened by all of these.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum
from itertools import combinations

import numpy as np
from scipy.special import softmax

from attacks.label_fit import BAR, Fit, LabelModel, left_inverse
from attacks.label_noise import Deviation
from attacks.last_layer import LastLayer
from attacks.types import GradientLeak

COINCIDENCE = 10.0
"""By how much smaller than the tolerance a bar must be where fitting at all is the evidence."""


class Unknown(Enum):
    """What an attacker may not know, besides λ."""

    SMOOTHING = 1
    SECOND_CLASS = 2
    GRADIENT_SCALE = 3


def unknowns(leak: GradientLeak, models: Iterable[LabelModel]) -> frozenset[Unknown]:
    """Return what an attacker who considers these label models doesn't know."""
    found = set()
    for model in models:
        if model.total is None:
            found.add(Unknown.SMOOTHING)
        if model.pair:
            found.add(Unknown.SECOND_CLASS)
    if not _is_unclipped(leak):
        found.add(Unknown.GRADIENT_SCALE)
    return frozenset(found)


def _is_unclipped(leak: GradientLeak) -> bool:
    """Say whether a known clipping norm is known not to have bound this update.

    Without a known norm the gradient may have been multiplied by anything.
    """
    norm = leak.knowledge.clipping_norm
    if norm is None or not leak.lr:
        return False
    size = sum(g.numel() for g in leak.gradients.values())
    noise = leak.knowledge.noise_std or 0.0
    update = leak.lr**2 * sum(float(g.double().square().sum()) for g in leak.gradients.values())
    # Four standard deviations of the squared norm's noise, so that chance doesn't decide; a clipped
    # update has the norm itself, up to rounding.
    spread = 4 * noise * np.sqrt(4 * update + 2 * size * noise**2)
    return bool(update - size * noise**2 + spread < 0.98 * norm**2)


def widest_bars(layer: LastLayer, fit: Fit, unknown: frozenset[Unknown]) -> tuple[float, float]:
    """Return the error bars of the label (L∞) and, relative, of λ.

    Where all unknowns at once would leave no equation as a test, the evidence is that a simple
    model fits at all, hardly a coincidence without noise. Then it is widened by as many unknowns at
    a time as there are equations to spare; and if there is but one, the bars are stretched: a false
    model fits with a probability of about its bar, 1 in 1,000 where the stretched bar is 1e-2.

    Args:
        layer: the rank-one problem.
        fit: the simplest model that fits.
        unknown: what isn't known.
    """
    own = set()
    if fit.model.total is None:
        own.add(Unknown.SMOOTHING)
    if fit.model.pair:
        own.add(Unknown.SECOND_CLASS)
    others = sorted(unknown - own, key=lambda u: u.value)
    number = len(others) if layer.is_noisy else min(len(others), fit.surplus)
    bars = [_bars(layer, fit, own | set(some)) for some in combinations(others, number)]
    # A misfit larger than expected means errors larger than expected, and as much wider bars.
    stretch = max(1.0, fit.residual) * (COINCIDENCE if others and fit.surplus == 1 else 1.0)
    return stretch * max(bar for bar, _ in bars), stretch * max(bar for _, bar in bars)


def _bars(layer: LastLayer, fit: Fit, free: Collection[Unknown]) -> tuple[float, float]:
    """Widen a fit, to first order: 4 standard deviations and the step to the widened optimum."""
    scale, label, (a, b) = fit.scale, fit.label, fit.classes
    p = softmax(scale * layer.logits)
    deviation = Deviation.at(layer, scale, p, label)
    target = deviation.whiten(layer.alpha - scale * (p - label), 1 - scale * layer.g[-1])
    towards = np.eye(len(label)) - 1 / len(label)
    if Unknown.SMOOTHING in free:
        moves, second = [towards[:, a]], towards
    else:
        moves, second = [], towards - towards[:, [a]]
    if fit.model.pair:
        moves.append(second[:, b])
    slope = p * (layer.logits - p @ layer.logits)
    columns = [deviation.whiten(p - label + scale * slope, layer.g[-1])]
    columns += [deviation.whiten(-scale * move, 0.0) for move in moves]
    if Unknown.GRADIENT_SCALE in free:
        columns.append(deviation.whiten(scale * (p - label), 0.0))
    design = np.stack(columns, axis=1)
    label_of = np.zeros((len(label), len(columns)))
    label_of[:, 1 : 1 + len(moves)] = np.reshape(moves, (len(moves), len(label))).T

    inverse = left_inverse(design)
    rows = np.vstack([label_of, np.eye(1, len(columns)) / scale])  # label, then λ, relative
    std = np.linalg.norm(rows @ inverse, axis=1)[:, None]
    step = (rows @ inverse @ target)[:, None]
    if Unknown.SECOND_CLASS in free and not fit.model.pair:
        # One more column each, for every class that may be the second: block elimination.
        moves_b = np.vstack([second, np.zeros(len(label))])[:, np.arange(len(label)) != a]
        extra = deviation.whiten(-scale * moves_b[:-1], 0.0)
        shared = inverse @ extra
        rest = extra - design @ shared
        size = np.maximum(np.linalg.norm(rest, axis=0), 1e-14 * np.linalg.norm(extra, axis=0))
        moves_b = moves_b - rows @ shared
        std = np.hypot(std, moves_b / size)
        step = step + moves_b * ((target @ rest) / size**2)
    bar = (BAR * std + np.abs(step)).max(axis=1)
    # Noise makes the length of the feature's part of g uncertain, too.
    part = float(np.linalg.norm(layer.g[: len(layer.g) - layer.has_bias]))
    length = BAR * float(layer.g_sigma.max()) / max(part, 1e-300)
    return float(bar[:-1].max()), float(bar[-1]) + length
