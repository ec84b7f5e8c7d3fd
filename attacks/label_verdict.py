"""What the fits at the roots of a scan allow an attack to claim."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import chi2

from attacks.label_bars import Unknown, widest_bars
from attacks.label_fit import BAR, Fit
from attacks.last_layer import LastLayer
from attacks.loss_check import IMBALANCE, OTHER_LOSS
from attacks.rank_one import Array
from attacks.types import LabelRecovery, Status

NOISE_QUANTILE = 1 - 1e-5
"""Share of the residuals at a true root that are accepted as Gaussian noise."""
WORST_DIRECTION = 0.1
"""Largest relative error of the feature's direction at which error bars, which are of first order,
are believed."""
ROUNDED_RESIDUAL = 6.0
"""Largest residual that float rounding explains, whose size is known roughly: true roots have up to
3.6, false ones mostly hundreds and more."""
CHANCE = 10.0
"""What a further unknown must gain in χ² to be believed: 1 in 600 gains as much by chance."""
RIVAL = 30.0
"""By how much worse in χ² a second root is no rival: odds of 3 million to one."""
ROUNDED_DRIFT = 30.0
"""Sum of G's rows that float rounding explains, in standard deviations: true roots have up to 7,
gradients with single rows scaled 3,000 and more."""
MAX_CANDIDATES = 16
"""Labels given under NOT_IDENTIFIABLE, the best first."""


def decide(
    layer: LastLayer,
    roots: list[list[Fit]],
    *,
    unknown: frozenset[Unknown],
    tolerance: float,
    certificate: float | None = None,
    plausible: Sequence[Fit] = (),
) -> LabelRecovery:
    """Turn the fits at every root into an answer that claims no more than they determine.

    Args:
        layer: the rank-one problem.
        roots: for each root, the fits of all label models.
        unknown: what the attacker doesn't know.
        tolerance: L∞ error that RECOVERED claims.
        certificate: of the scan.
        plausible: labels fitted at λ elsewhere, which noise and rounding may leave possible.
    """
    claim = _claim(layer, roots, unknown, tolerance, plausible)
    status = Status.RECOVERED if claim.reason is None else Status.NOT_IDENTIFIABLE
    best = claim.best
    width = layer.width
    label = np.full(len(layer.alpha), np.nan) if best is None else _on_simplex(best.label)
    feature = np.full(width, np.nan) if best is None else best.scale * layer.g[:width]
    candidates = [_on_simplex(fit.label) for fit in claim.candidates[:MAX_CANDIDATES]]
    return LabelRecovery(
        status,
        claim.reason,
        labels=torch.from_numpy(label)[None],
        features=torch.from_numpy(feature)[None],
        label_std=None if best is None else torch.from_numpy(best.std)[None],
        gradient_scale=None if best is None else best.gradient_scale,
        feature_bar=_row(claim.feature_bar),
        statuses=(status,),
        reasons=(claim.reason,),
        augmentations=(None if best is None else best.augmentation,),
        residual=_row(None if best is None else best.residual),
        certificate=_row(certificate),
        candidates=torch.from_numpy(np.array(candidates)),
        batch_size=1,
    )


@dataclass(frozen=True)
class _Claim:
    """What the fits determine: the label, unless there is a reason why not.

    Args:
        candidates: the labels that fit, the best first.
        best: the estimate; None where several fit equally well.
        reason: why the label isn't determined.
        feature_bar: relative error bar of the feature's scale, where it is.
    """

    candidates: list[Fit]
    best: Fit | None
    reason: str | None = None
    feature_bar: float | None = None


def _claim(
    layer: LastLayer,
    roots: list[list[Fit]],
    unknown: frozenset[Unknown],
    tolerance: float,
    plausible: Sequence[Fit],
) -> _Claim:
    chosen = [_select(layer, fits) for fits in roots if fits]
    fitting = [fit for fit in chosen if explains(layer, fit)]
    if not fitting:
        guesses = sorted(chosen, key=lambda f: f.residual)
        reason = (
            "no augmented label explains the gradient: it may have been changed by a defense or an "
            "optimizer, or come from more than one example, or from another loss"
        )
        if abs(layer.drift) > max(
            IMBALANCE * float(np.abs(layer.alpha).sum()),
            ROUNDED_DRIFT * float(np.linalg.norm(layer.alpha_sigma)),
        ):
            reason = OTHER_LOSS
        return _Claim(guesses, guesses[0] if guesses else None, reason)
    enough = [fit for fit in fitting if fit.surplus >= 1]
    if not enough:
        equations = f"{len(layer.alpha)} classes give no more equations than unknowns"
        return _Claim(fitting, None, f"{equations}; {_count(len(fitting), 'label')} fit")
    best = min(enough, key=_rank(layer))
    if layer.direction_error > WORST_DIRECTION:
        uncertain = f"its direction is uncertain by {layer.direction_error:.0%}"
        return _Claim([best], best, f"noise hides the gradient: {uncertain}")
    others = [f for f in fitting if np.abs(f.label - best.label).max() > tolerance]
    if layer.is_noisy:  # a model without an equation to spare can rival one that has some
        others = [f for f in others if f.misfit < best.misfit + RIVAL]
    else:
        others = [f for f in others if f.surplus >= 1]
    if others:
        found = _count(1 + len(others), "label")
        if layer.is_noisy:  # one of them is likelier
            return _Claim([best, *others], best, f"noise leaves {found} possible")
        return _Claim([best, *others], None, f"{found} fit equally well")
    bar, feature_bar = widest_bars(layer, best, unknown)
    limit = best.misfit + BAR**2 * max(1.0, best.residual) ** 2
    near = [f.label for f in plausible if f.misfit <= limit]
    bar = max(bar, *(float(np.abs(label - best.label).max()) for label in near), 0.0)
    if not bar <= tolerance:
        cause = (
            "noise"
            if layer.is_noisy
            else "the rounding to 16 bits"
            if layer.is_coarse
            else "float rounding (the network is saturated, or its logits hardly differ)"
        )
        uncertain = f"uncertain by ±{min(bar, 1.0):.2g}, more than {tolerance:g}"
        return _Claim([best], best, f"{cause} leaves the label {uncertain}")
    return _Claim([best], best, feature_bar=feature_bar)


def _row(value: float | None) -> torch.Tensor:
    return torch.tensor([torch.nan if value is None else value], dtype=torch.float64)


def _select(layer: LastLayer, fits: list[Fit]) -> Fit:
    """Choose a label model at a root: the simplest that explains the gradient.

    Under noise, whose size is known, the simplest that no wider one improves on by more than
    chance does; a second class may be any.
    """
    explaining = [fit for fit in fits if explains(layer, fit)]
    if not explaining:
        return min(fits, key=lambda fit: fit.residual)
    if not layer.is_noisy:
        return min(explaining, key=lambda fit: (fit.unknowns, fit.residual))
    look_elsewhere = 2 * np.log(len(layer.alpha))
    return min(
        explaining,
        key=lambda fit: fit.misfit + CHANCE * fit.unknowns + look_elsewhere * fit.model.pair,
    )


def _rank(layer: LastLayer) -> Callable[[Fit], tuple[float, float]]:
    """Return how the fits at several roots are ordered."""
    if layer.is_noisy:
        return lambda fit: (fit.misfit + CHANCE * fit.unknowns, 0.0)
    return lambda fit: (-fit.surplus, fit.residual)


@functools.cache
def _noise_limit(freedom: int) -> float:
    return float(np.sqrt(chi2.ppf(NOISE_QUANTILE, freedom) / freedom))


def explains(layer: LastLayer, fit: Fit) -> bool:
    """Say whether noise and rounding explain a fit: misfit, label on the simplex, G of zero sum."""
    limit = _noise_limit(max(fit.surplus, 1)) if layer.is_noisy else ROUNDED_RESIDUAL
    slack = 1e-9 + min(fit.bar * max(1.0, fit.residual), 0.05)
    in_range = fit.label.min() >= -slack and fit.label.max() <= 1 + slack
    # A defense that scales single rows keeps rank one, and centring makes of it another smoothing.
    spread = np.hypot(np.linalg.norm(layer.alpha_sigma), 2 * layer.eps / abs(fit.s))
    is_balanced = abs(layer.drift) <= (BAR + 1 if layer.is_noisy else ROUNDED_DRIFT) * spread
    return bool(in_range and is_balanced and fit.residual <= limit)


def _on_simplex(label: Array) -> Array:
    positive = label.clip(0)
    return np.asarray(positive / positive.sum())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
