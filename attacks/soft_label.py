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
from numpy.typing import NDArray
from scipy.special import softmax

from attacks.label_bars import unknowns
from attacks.label_fit import BAR, fit_label, label_models
from attacks.label_noise import expected_variance
from attacks.label_verdict import decide
from attacks.last_layer import Array, LastLayer
from attacks.network import Network
from attacks.types import (
    GradientLeak,
    LabelAttack,
    LabelRecovery,
    require_one_example,
)

STEP = 0.05
"""Step of the scan in log λ."""
DECADES = 8
"""How far beyond the smallest possible λ the scan goes."""
NEAR = 1e3
"""Minima of φ up to this many times its expected value at a root are fitted."""

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
        plausible = None
        if layer.has_bias:
            roots, certificate = np.array([1 / layer.g[-1]]), None
        else:
            signs = (layer.sign_of_features(),) if network.has_nonnegative_features() else (1, -1)
            roots, certificate = scan(layer, signs)
            plausible = plausible_labels(layer, signs)
        models = label_models(leak.knowledge)
        fits = [[fit for m in models if (fit := fit_label(layer, m, root))] for root in roots]
        return decide(
            layer,
            fits,
            unknown=unknowns(leak, models),
            tolerance=self.tolerance,
            certificate=certificate,
            plausible=plausible,
        )


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
    grid = _grid(layer)
    scales, values = [], []
    for sign in signs:
        # A second class with a small share makes a narrow dip, at the bottom of φ for one class.
        one = _minima(tie_variance(layer, sign * grid, 1))
        fine = np.multiply.outer(grid[one], np.exp((np.arange(-64, 64) + 0.5) / 16 * STEP))
        points = np.unique(np.concatenate([grid, fine.ravel()]))
        for objective in _objectives(len(layer.alpha)):
            inner = _minima(objective(layer, sign * points))
            found = sign * _zoom(layer, objective, sign, points[inner - 1], points[inner + 1])
            found = np.append(found, sign * points[-1])  # the plateau, where ŷ is nearly hard
            scales.append(found)
            values.append(objective(layer, found))
    return _best(layer, np.concatenate(scales), np.concatenate(values))


def _minima(values: Array) -> NDArray[np.intp]:
    """Return the indices of the local minima, but for the ends and the ripple on plateaus."""
    deeper = values[1:-1] * (1 + 1e-9)
    return np.flatnonzero((deeper < values[:-2]) & (deeper <= values[2:])) + 1


def plausible_labels(layer: LastLayer, signs: tuple[int, ...]) -> Array:
    """Return the labels (N, K) on the grid whose φ noise and rounding explain; few where sharp."""
    found = []
    for objective in _objectives(len(layer.alpha)):
        for sign in signs:
            scales = sign * _grid(layer)
            near = objective(layer, scales) <= BAR**2 * _floor(layer, scales)
            found.append(scales[near & _is_on_simplex(layer, scales)])
    return predicted_label(layer, np.concatenate(found))


def _grid(layer: LastLayer) -> Array:
    start = np.log(np.abs(layer.alpha).sum() / 2)
    return np.asarray(np.exp(start + np.arange(-1, DECADES * np.log(10) / STEP) * STEP))


def _floor(layer: LastLayer, scales: Array) -> Array:
    """Return what φ is expected to be at a root, (N,)."""
    tied = max(len(layer.alpha) - 2, 1)
    return np.asarray(np.sort(expected_variance(layer, scales))[:, :tied].mean(axis=-1))


def _is_on_simplex(layer: LastLayer, scales: Array) -> NDArray[np.bool_]:
    labels = predicted_label(layer, scales)
    slack = 1e-3 + 10 * layer.sigma / np.abs(scales)
    return np.asarray((labels.min(axis=-1) > -slack) & (labels.max(axis=-1) < 1 + slack))


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
    inside = _is_on_simplex(layer, scales)
    scales, values = scales[inside], values[inside]
    order = np.argsort(values, kind="stable")
    scales, values = scales[order], values[order]
    if not len(values):
        return scales, None
    possible = values <= NEAR * _floor(layer, scales)
    possible[0] = True
    certificate = None
    if len(values) > 1 and len(layer.alpha) >= 5:
        smallest = layer.eps**2 * float(layer.alpha @ layer.alpha)
        certificate = float(values[1] / max(values[0], smallest))
    return scales[possible], certificate
