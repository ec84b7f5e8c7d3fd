"""Fit a label model to a rank-one gradient by least squares, with its error bars.

The observed `α` obeys `α = (p(λ) − y)/s`, `p(λ) = softmax(λ W g)`, up to noise; `s = 1/λ` unless
the gradient was scaled by an unknown c, then `s = 1/(c λ)`. An augmented label is linear in at most
two numbers once its classes a and b are known:

    y = 1/K + u (e_a − 1/K) + w (e_b − 1/K),    ε = 1 − u − w,    mixing = u / (u + w).

Hard: u = 1, w = 0. Smoothing: w = 0. Mixup: u + w = 1. Mixup with smoothing: both free. So each
model is a least-squares problem in λ, perhaps c, and those numbers, weighted by the covariance that
noise and rounding give `α − (p − y)/s`: maximum likelihood, to first order in the noise.
The letters are those of `attacks.soft_label`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.label_noise import Deviation
from attacks.last_layer import LastLayer
from attacks.rank_one import Array
from attacks.types import Augmentation, Knowledge

BAR = 4.0
"""Standard deviations in an error bar: 1 in 16,000 lies outside, for Gaussian errors."""

HOPELESS = 1e4
"""Misfit, in standard deviations, that no further steps would mend."""


@dataclass(frozen=True)
class LabelModel:
    """Which labels are considered.

    Args:
        pair: whether two classes share the label.
        total: u + w = 1 − ε where it is known; None where ε is free.
    """

    pair: bool
    total: float | None

    @property
    def unknowns(self) -> int:
        """Free numbers in the label; λ and c aren't counted."""
        return int(self.pair) + (self.total is None)

    def basis(self, classes: int, a: int, b: int) -> tuple[Array, Array]:
        """Return y₀ (K,) and Y (K, unknowns) such that `y = y₀ + Y β`."""
        uniform = np.full(classes, 1 / classes)
        towards_a, towards_b = -uniform, -uniform
        towards_a[a] += 1
        towards_b[b] += 1
        if not self.pair and self.total is None:
            return uniform, towards_a[:, None]
        if not self.pair:
            return uniform + self.total * towards_a, np.empty((classes, 0))
        if self.total is None:
            return uniform, np.stack([towards_a, towards_b], axis=1)
        return uniform + self.total * towards_b, self.total * (towards_a - towards_b)[:, None]

    def describe(self, label: Array, a: int, b: int) -> Augmentation:
        """Name the augmentation behind a label of this model."""
        if self.total is not None:
            smoothing = 1 - self.total
        elif self.pair:
            smoothing = len(label) * (1 - label[a] - label[b]) / max(len(label) - 2, 1)
        else:
            smoothing = 1 - (label[a] - label[b])
        smoothing = float(np.clip(smoothing, 0, 1))
        smooth = self.total is None or self.total < 1
        if not self.pair:
            return Augmentation("label-smoothing" if smooth else "hard", smoothing)
        share = (label[a] - smoothing / len(label)) / max(1 - smoothing, 1e-300)
        return Augmentation(
            "mixup+label-smoothing" if smooth else "mixup",
            smoothing,
            float(np.clip(max(share, 1 - share), 0.5, 1)),
        )


def label_models(knowledge: Knowledge) -> list[LabelModel]:
    """Return the models that an attacker's knowledge leaves, the simplest first."""
    epsilon = knowledge.smoothing
    models = [LabelModel(False, 1.0), LabelModel(False, None), LabelModel(True, 1.0)]
    models.append(LabelModel(True, None))
    if knowledge.type is not None:
        # A pair of one class is no pair: mixing includes its unmixed counterpart.
        kept = {"hard": (0,), "label-smoothing": (1,), "mixup": (0, 2)}.get(knowledge.type, (1, 3))
        models = [models[index] for index in kept]
    if epsilon is not None:
        models = [LabelModel(pair, 1 - epsilon) for pair in sorted({m.pair for m in models})]
    return models


@dataclass(frozen=True)
class Root:
    """Where a fit starts.

    Args:
        scale: λ.
        s: 1/(c λ).
    """

    scale: float
    s: float


@dataclass(frozen=True, eq=False)
class Fit:
    """A label model fitted at one root.

    Args:
        model: what was fitted.
        scale: λ.
        s: 1/(c λ).
        is_scaled: whether c was free.
        label: (K,), on the simplex up to its error bar.
        std: (K,), standard errors of the label's entries, if the model is right.
        classes: (a, b), the largest entries of the label.
        residual: rms of the whitened residual; 1 is what noise and rounding explain.
        surplus: equations minus unknowns; a model without surplus fits anything.
    """

    model: LabelModel
    scale: float
    s: float
    is_scaled: bool
    label: Array
    std: Array
    classes: tuple[int, int]
    residual: float
    surplus: int

    @property
    def bar(self) -> float:
        """The label's largest error bar."""
        return BAR * float(self.std.max())

    @property
    def unknowns(self) -> int:
        """Free numbers besides λ."""
        return self.model.unknowns + self.is_scaled

    @property
    def misfit(self) -> float:
        """Sum of the squared whitened residuals: χ², twice the negative log-likelihood."""
        return self.residual**2 * max(self.surplus, 1)

    @property
    def gradient_scale(self) -> float:
        """The factor c = 1/(s λ) on the gradient."""
        return 1 / (self.s * self.scale)

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation that the label shows."""
        return self.model.describe(self.label, *self.classes)


def fit_label(
    layer: LastLayer, model: LabelModel, root: Root, *, is_scaled: bool = False
) -> Fit | None:
    """Fit one model by Gauss-Newton on (λ, c, β), starting near a root.

    Args:
        layer: the rank-one problem.
        model: which labels.
        root: where to start.
        is_scaled: whether c is free, or 1.

    Returns:
        The fit, or None where it doesn't settle.
    """
    scale, s = root.scale, root.s
    label, (a, b) = _start(layer, root)
    base, basis = model.basis(len(label), a, b)
    beta = np.asarray(np.linalg.lstsq(basis, label - base, rcond=None)[0] if basis.size else [])
    settled = False  # the last pass only linearises
    for _ in range(30):
        label = base + basis @ beta
        line = Linearised.at(layer, scale, s, label, basis, is_scaled=is_scaled)
        if settled:
            break
        if not np.isfinite(line.design).all():
            return None
        step = np.asarray(np.linalg.lstsq(line.design, line.target, rcond=None)[0])
        if not np.isfinite(step).all():
            return None
        left = float(np.linalg.norm(line.target - line.design @ step))
        if left > HOPELESS * len(label) ** 0.5:
            break
        longest = max(abs(step[0] / scale), abs(step[1]) if is_scaled else 0.0)
        shrink = min(1.0, 0.5 / max(longest, 1e-300))
        settled = longest <= 1e-11  # the next step would be rounding
        scale += shrink * float(step[0])
        s = s / (1 + shrink * float(step[1])) if is_scaled else 1 / scale
        beta = beta + shrink * step[1 + is_scaled :]
    else:
        return None
    surplus = len(label) - 2 - model.unknowns - is_scaled + (layer.bias is not None)
    std = standard_errors(basis, left_inverse(line.design)[1 + is_scaled :])
    residual = float(np.linalg.norm(line.target) / np.sqrt(max(surplus, 1)))
    return Fit(model, scale, s, is_scaled, label, std, (a, b), residual, surplus)


def _start(layer: LastLayer, root: Root) -> tuple[Array, tuple[int, int]]:
    """Return ŷ at a root, and its two largest classes; under noise, the most significant ones."""
    p = softmax(root.scale * layer.logits)
    label = p - root.s * layer.alpha
    excess = label
    if layer.is_noisy:
        std = Deviation.at(layer, root.scale, p, label, root.s, is_whole=False).std
        excess = (label - np.median(label)) / (abs(root.s) * std)
    a, b = (int(k) for k in np.argsort(-excess)[:2])
    return label, (a, b) if label[a] >= label[b] else (b, a)


def label_at(layer: LastLayer, model: LabelModel, root: Root) -> Fit:
    """Fit the label alone, λ and s as given."""
    label, (a, b) = _start(layer, root)
    base, basis = model.basis(len(label), a, b)
    line = Linearised.at(layer, root.scale, root.s, label, basis, is_scaled=False)
    target = line.deviation.whiten(
        layer.alpha - (softmax(root.scale * layer.logits) - base) / root.s, 0.0
    )
    design = line.design[:, 1:]
    beta = np.asarray(np.linalg.lstsq(design, target, rcond=None)[0])
    surplus = len(label) - 1 - model.unknowns
    residual = float(np.linalg.norm(target - design @ beta) / np.sqrt(max(surplus, 1)))
    std = standard_errors(basis, left_inverse(design))
    label = base + basis @ beta
    return Fit(model, root.scale, root.s, False, label, std, (a, b), residual, surplus)


@dataclass(frozen=True, eq=False)
class Linearised:
    """The whitened equations around a point.

    Args:
        deviation: what whitened them.
        target: (K,) or (K+1,) with a bias, `α − (p − y)/s` and `1 − λ g_bias`.
        design: (K or K+1, n), their derivatives after λ, after ln (c λ) where c is free (then λ's
            is at fixed c λ), and along the label's moves.
    """

    deviation: Deviation
    target: Array
    design: Array

    @classmethod
    def at(
        cls,
        layer: LastLayer,
        scale: float,
        s: float,
        label: Array,
        moves: Array,
        *,
        is_scaled: bool,
    ) -> Linearised:
        """Linearise at λ, s and a label that can move in directions (K, m)."""
        p = softmax(scale * layer.logits)
        deviation = Deviation.at(layer, scale, p, label, s)
        g_bias = 0.0 if layer.bias is None else float(layer.g[-1])
        by_scale = p * (layer.logits - p @ layer.logits) / s
        columns = []
        if is_scaled:
            columns.append(deviation.whiten((p - label) / s, 0.0))
        else:
            by_scale = by_scale + p - label
        columns.insert(0, deviation.whiten(by_scale, g_bias))
        if moves.size:
            columns += list(deviation.whiten(-moves / s, 0.0).T)
        target = deviation.whiten(layer.alpha - (p - label) / s, 1 - scale * g_bias)
        return cls(deviation, target, np.stack(columns, axis=1))


def left_inverse(design: Array) -> Array:
    """Return the (n, K or K+1) matrix that maps a whitened target to the least-squares step.

    Its rows' norms are the standard errors. A direction without an equation gets a huge one, not
    zero, as from a pseudo-inverse.
    """
    sizes = np.linalg.norm(design, axis=0)
    sizes = np.where(sizes > 0, sizes, 1e-100)
    left, singular, right = np.linalg.svd(design / sizes, full_matrices=False)
    inverse = right.T / np.maximum(singular, 1e-14) @ left.T
    return np.asarray(inverse / sizes[:, None])


def standard_errors(wanted: Array, inverse: Array) -> Array:
    """Return those of linear combinations (N, n) of what `inverse` (n, K) estimates, (N,)."""
    factor = np.asarray(np.linalg.qr(inverse.T, mode="r"))
    return np.asarray(np.linalg.norm(wanted @ factor.T, axis=1))


def softmax(logits: Array) -> Array:
    """Return the softmax over the last axis; for a few classes SciPy's takes twice as long."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))
