"""What the fits at the roots of a scan allow an attack to claim."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from scipy.stats import chi2

from attacks.label_bars import Unknown, widest_bars
from attacks.label_fit import Fit
from attacks.last_layer import Array, LastLayer
from attacks.types import LabelRecovery, Status

NOISE_QUANTILE = 1 - 1e-5
"""Share of the residuals at a true root that are accepted as Gaussian noise."""
WORST_DIRECTION = 0.1
"""Largest relative error of the feature's direction at which error bars, which are of first order,
are believed."""
ROUNDED_RESIDUAL = 6.0
"""Largest residual that float rounding explains, whose size is known roughly: true roots have up to
3.6, false ones mostly hundreds and more."""
MAX_CANDIDATES = 16
"""Labels given under NOT_IDENTIFIABLE, the best first."""


def decide(
    layer: LastLayer,
    roots: list[list[Fit]],
    *,
    unknown: frozenset[Unknown],
    tolerance: float,
    certificate: float | None = None,
    plausible: Array | None = None,
) -> LabelRecovery:
    """Turn the fits at every root into an answer that claims no more than they determine.

    Args:
        layer: the rank-one problem.
        roots: for each root, the fits of all label models.
        unknown: what the attacker doesn't know.
        tolerance: L∞ error that RECOVERED claims.
        certificate: of the scan.
        plausible: (N, K), labels elsewhere that noise and rounding leave possible.
    """
    fitting = [[f for f in fits if _explains(layer, f)] for fits in roots]
    fitting = [fits for fits in fitting if fits]
    enough = [fits for fits in fitting if any(f.surplus >= 1 for f in fits)]
    least_surplus = 0 if layer.is_noisy else 1
    rivals = [fits for fits in fitting if any(f.surplus >= least_surplus for f in fits)]

    def answer(
        status: Status, reason: str | None, fits: list[Fit], label: Fit | None
    ) -> LabelRecovery:
        return _answer(layer, status, reason, fits, label, certificate)

    if not fitting:
        guesses = [min(fits, key=lambda f: f.residual) for fits in roots if fits]
        return answer(
            Status.NOT_IDENTIFIABLE,
            "no augmented label explains the gradient: it may have been scaled (clipping, another "
            "learning rate), or come from more than one example",
            guesses,
            guesses[0] if guesses else None,
        )
    if not enough:
        labels = [_simplest(fits) for fits in fitting]
        return answer(
            Status.NOT_IDENTIFIABLE,
            f"{len(layer.alpha)} classes give no more equations than unknowns; "
            f"{_count(len(labels), 'label')} fit",
            labels,
            None,
        )
    if layer.direction_error > WORST_DIRECTION:
        best = _simplest(fitting[0])
        return answer(
            Status.NOT_IDENTIFIABLE,
            f"noise hides the gradient: its direction is uncertain by {layer.direction_error:.0%}",
            [best],
            best,
        )
    best = min((_simplest(fits) for fits in enough), key=lambda f: (-f.surplus, f.residual))
    others = [_simplest(fits) for fits in rivals if not any(f is best for f in fits)]
    others = [f for f in others if np.abs(f.label - best.label).max() > tolerance]
    if others:
        return answer(
            Status.NOT_IDENTIFIABLE,
            f"{_count(1 + len(others), 'label')} fit equally well",
            [best, *others],
            None,
        )
    same = next(fits for fits in enough if any(f is best for f in fits))
    same = [f for f in same if f.surplus >= least_surplus]
    bar, scale_bar = widest_bars(layer, best, unknown)
    bar += max(float(np.abs(f.label - best.label).max()) for f in same)
    if plausible is not None and len(plausible):
        bar = max(bar, float(np.abs(plausible - best.label).max()))
    if not bar <= tolerance:
        cause = "noise" if layer.is_noisy else "float rounding (the network is saturated)"
        return answer(
            Status.NOT_IDENTIFIABLE,
            f"{cause} leaves the label uncertain by ±{min(bar, 1.0):.2g}, more than {tolerance:g}",
            [best],
            best,
        )
    recovered = answer(Status.RECOVERED, None, [best], best)
    return dataclasses.replace(recovered, feature_bar=scale_bar)


def _simplest(fits: list[Fit]) -> Fit:
    return min(fits, key=lambda f: (f.model.unknowns, f.residual))


def _explains(layer: LastLayer, fit: Fit) -> bool:
    """Say whether noise and rounding explain a fit's misfit, and its label is on the simplex."""
    freedom = max(fit.surplus, 1)
    noise_limit = float(np.sqrt(chi2.ppf(NOISE_QUANTILE, freedom) / freedom))
    limit = noise_limit if layer.is_noisy else ROUNDED_RESIDUAL
    slack = 1e-9 + min(fit.bar * max(1.0, fit.residual), 0.05)
    in_range = fit.label.min() >= -slack and fit.label.max() <= 1 + slack
    return bool(in_range and fit.residual <= limit)


def _answer(
    layer: LastLayer,
    status: Status,
    reason: str | None,
    candidates: list[Fit],
    best: Fit | None,
    certificate: float | None,
) -> LabelRecovery:
    width = len(layer.g) - layer.has_bias
    label = np.full(len(layer.alpha), np.nan) if best is None else _on_simplex(best.label)
    feature = np.full(width, np.nan) if best is None else best.scale * layer.g[:width]
    return LabelRecovery(
        status,
        reason,
        labels=torch.from_numpy(label)[None],
        features=torch.from_numpy(feature)[None],
        statuses=(status,),
        augmentations=(None if best is None else best.augmentation,),
        residual=None if best is None else best.residual,
        certificate=certificate,
        candidates=torch.from_numpy(
            np.array([_on_simplex(f.label) for f in candidates[:MAX_CANDIDATES]])
        ),
        batch_size=1,
    )


def _on_simplex(label: Array) -> Array:
    positive = label.clip(0)
    return np.asarray(positive / positive.sum())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
