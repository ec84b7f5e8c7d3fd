"""Exact recovery of one example's augmented label and feature from the last layer's gradient.

Y. Wang, J. Liang, R. He, *Towards Eliminating Hard Label Constraints in Gradient Inversion
Attacks*, ICLR 2024, arXiv 2402.03124, section 4. One example behind the gradient makes it rank one,
`G = ∂L/∂W = (p − y) xᵀ`; with the row `g` and `α = G g / ‖g‖²`, one scalar λ is unknown:

    x = λ g,      p(λ) = softmax(W x + b),      ŷ(λ) = p(λ) − α / λ.

Σ ŷ(λ) = 1 holds for every λ, so a property of augmented labels has to select it: all entries but
the one or two largest are equal.

Differences from the paper: `g` and α come from all of G (its leading singular pair), not from one
row; the objective is `φ(λ) = Var(λ p − α)` over the tied entries, which doesn't vanish as λ grows,
and is scanned exactly instead of searched by L-BFGS and particle swarms; the augmentation is
detected, the answer carries an error bar, and nothing is accepted by comparing it with the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax
from scipy.stats import chi2

from attacks.label_fit import Fit, expected_variance, fit_label, label_models
from attacks.last_layer import Array, LastLayer
from attacks.network import Network
from attacks.types import (
    GradientLeak,
    LabelAttack,
    LabelRecovery,
    NotApplicable,
    Status,
    require_one_example,
)

STEP = 0.05
"""Step of the scan in log λ; the narrowest minima of φ are some five times as wide."""
DECADES = 8
"""How far beyond the smallest possible λ the scan goes."""
NEAR = 1e3
"""Minima of φ up to this many times its expected value at a root are fitted."""
NOISE_QUANTILE = 1 - 1e-5
"""Share of the residuals at a true root that are accepted as Gaussian noise."""
WORST_DIRECTION = 0.1
"""Largest relative error of the feature's direction at which error bars, which are of first order,
are believed."""
MAX_CANDIDATES = 16
ROUNDED_RESIDUAL = 30.0
"""Largest residual that float rounding explains, whose size is known roughly; false roots have
hundreds and more."""

Objective = Callable[[LastLayer, Array], Array]


@dataclass(frozen=True)
class SoftLabelRecovery(LabelAttack):
    """Recover the soft label and the feature of one example, without its augmentation being told.

    Args:
        tolerance: L∞ error of the label that RECOVERED stays below, in (0, 1).

    Raises:
        ValueError: tolerance is outside (0, 1).

    Note:
        `certificate` is the ratio of the runner-up's φ to the best; None with a bias (no search).
        RECOVERED needs that no second root fits within noise and rounding, however large it is.
        the misfit is what noise and rounding explain.
    """

    tolerance: float = 1e-2

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be in (0, 1), found {self.tolerance}")

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Scan λ, fit the label models at every root, and answer with what is determined."""
        require_one_example(leak)
        network = Network(leak)
        layer = LastLayer.of(leak, network)
        if leak.batch_size is None and not layer.is_rank_one:
            raise NotApplicable(
                "the gradient has more than one example in it (its rank is above 1)"
            )
        if layer.has_bias:
            roots, certificate = np.array([1 / layer.g[-1]]), None
        else:
            signs = (layer.sign_of_features(),) if network.has_nonnegative_features() else (1, -1)
            roots, certificate = scan(layer, signs)
        scale_known = not layer.is_noisy or _is_unclipped(leak)
        models = label_models(leak.knowledge)
        fits = [
            [
                fit
                for m in models
                if (fit := fit_label(layer, m, root, gradient_scale_known=scale_known))
            ]
            for root in roots
        ]
        return decide(layer, fits, certificate, self.tolerance)


def predicted_label(layer: LastLayer, scales: Array) -> Array:
    """Return `ŷ(λ) = softmax(λ W g) − α / λ` for scales λ (N,); (N, K)."""
    p = softmax(np.multiply.outer(scales, layer.logits), axis=-1)
    return np.asarray(p - layer.alpha / scales[..., None])


def tie_variance(layer: LastLayer, scales: Array, largest: int = 2) -> Array:
    """Return `φ(λ) = λ² Var(ŷ(λ))` over all but the `largest` entries of ŷ; of `scales`' shape."""
    tied = np.partition(predicted_label(layer, scales), -largest, axis=-1)[..., :-largest]
    return np.asarray(scales**2 * tied.var(axis=-1))


def scan(layer: LastLayer, signs: tuple[int, ...]) -> tuple[Array, float | None]:
    """Find the local minima of φ over λ, both signs if need be.

    `|λ|` is at least ‖α‖₁/2, since ‖p − y‖₁ is at most 2.

    Returns:
        The λ that may be roots, best first, and the certificate: the runner-up's φ over the best.
    """
    start = np.log(np.abs(layer.alpha).sum() / 2)
    grid = np.exp(start + np.arange(-1, DECADES * np.log(10) / STEP) * STEP)
    scales, values = [], []
    for objective in _objectives(len(layer.alpha)):
        for sign in signs:
            phi = objective(layer, sign * grid)
            inner = np.flatnonzero((phi[1:-1] < phi[:-2]) & (phi[1:-1] <= phi[2:])) + 1
            found = sign * _zoom(layer, objective, sign, grid[inner - 1], grid[inner + 1])
            scales.append(found)
            values.append(objective(layer, found))
    return _best(layer, np.concatenate(scales), np.concatenate(values))


def _objectives(classes: int) -> list[Objective]:
    """Return the functions of λ whose minima hold the root.

    From five classes on one does. Below, too few entries are tied: a smoothed label may leave only
    its own tie, a mixed one only a zero, so these are searched too.
    """
    if classes >= 5:
        return [tie_variance]
    few: list[Objective] = [lambda layer, scales: tie_variance(layer, scales, 1), _smallest]
    return [tie_variance, *few] if classes == 4 else few


def _smallest(layer: LastLayer, scales: Array) -> Array:
    smallest = predicted_label(layer, scales).min(axis=-1)
    return np.asarray((scales * smallest) ** 2)


def _zoom(layer: LastLayer, objective: Objective, sign: int, low: Array, high: Array) -> Array:
    """Narrow all brackets (low, high) of |λ| at once, eightfold a pass, to 1e-10 in log λ."""
    for _ in range(10):
        points = np.exp(np.linspace(np.log(low), np.log(high), 17))
        least = objective(layer, sign * points).argmin(axis=0).clip(1, 15)
        low, high = (points[least + k, np.arange(len(least))] for k in (-1, 1))
    return np.asarray(np.sqrt(low * high))


def _best(layer: LastLayer, scales: Array, values: Array) -> tuple[Array, float | None]:
    """Keep the minima that noise and rounding may turn into roots, and always the best, by φ."""
    labels = predicted_label(layer, scales)
    slack = 1e-3 + 10 * layer.sigma / np.abs(scales)
    inside = (labels.min(axis=-1) > -slack) & (labels.max(axis=-1) < 1 + slack)
    scales, values = scales[inside], values[inside]
    order = np.argsort(values, kind="stable")
    scales, values = scales[order], values[order]
    if not len(values):
        return scales, None
    tied = max(len(layer.alpha) - 2, 1)
    floor = np.array([np.sort(expected_variance(layer, s))[:tied].mean() for s in scales])
    possible = values <= NEAR * floor
    possible[0] = True
    certificate = None
    if len(values) > 1 and len(layer.alpha) >= 5:
        smallest = layer.eps**2 * float(layer.alpha @ layer.alpha)
        certificate = float(values[1] / max(values[0], smallest))
    return scales[possible], certificate


def decide(
    layer: LastLayer, roots: list[list[Fit]], certificate: float | None, tolerance: float
) -> LabelRecovery:
    """Turn the fits at every root into an answer that claims no more than they determine.

    Args:
        layer: the rank-one problem.
        roots: for each root, the fits of all label models.
        certificate: of the scan.
        tolerance: L∞ error that RECOVERED claims.
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
    bar = max(
        np.abs(f.label - best.label).max() + f.bar for f in same if f.surplus >= least_surplus
    )
    if not bar <= tolerance:
        cause = "noise" if layer.is_noisy else "float rounding (the network is saturated)"
        return answer(
            Status.NOT_IDENTIFIABLE,
            f"{cause} leaves the label uncertain by ±{min(bar, 1.0):.2g}, more than {tolerance:g}",
            [best],
            best,
        )
    return answer(Status.RECOVERED, None, [best], best)


def _simplest(fits: list[Fit]) -> Fit:
    return min(fits, key=lambda f: (f.model.unknowns, f.residual))


def _explains(layer: LastLayer, fit: Fit) -> bool:
    """Say whether noise and rounding explain a fit's misfit, and its label is on the simplex."""
    freedom = max(fit.surplus, 1)
    noise_limit = float(np.sqrt(chi2.ppf(NOISE_QUANTILE, freedom) / freedom))
    limit = noise_limit if layer.is_noisy else ROUNDED_RESIDUAL
    slack = 1e-5 + min(fit.bar, 0.05)
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


def _is_unclipped(leak: GradientLeak) -> bool:
    """Say whether a known clipping norm is known not to have bound this update."""
    norm = leak.knowledge.clipping_norm
    if norm is None or not leak.lr:
        return False
    size = sum(g.numel() for g in leak.gradients.values())
    noise = leak.knowledge.noise_std or 0.0
    update = leak.lr**2 * sum(float(g.double().square().sum()) for g in leak.gradients.values())
    # Four standard deviations of the squared norm's noise, so that chance doesn't decide.
    spread = 4 * noise * np.sqrt(4 * update + 2 * size * noise**2)
    return bool(update - size * noise**2 + spread < norm**2)
