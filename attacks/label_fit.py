"""Fit a label model to a rank-one gradient by least squares, with its error bar.

The observed `α` obeys `α = λ (p(λ) − y)`, `p(λ) = softmax(λ W g)`, up to noise. An augmented label
is linear in at most two numbers once its classes a and b are known:

    y = 1/K + u (e_a − 1/K) + w (e_b − 1/K),    ε = 1 − u − w,    mixing = u / (u + w).

Hard: u = 1, w = 0. Smoothing: w = 0. Mixup: u + w = 1. Mixup with smoothing: both free. So each
model is a least-squares problem in λ and those numbers, weighted by the covariance that noise and
rounding give `α − λ (p − y)`.
The letters are those of `attacks.soft_label`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from attacks.label_noise import Deviation
from attacks.last_layer import Array, LastLayer
from attacks.types import Augmentation, Knowledge

BAR = 4.0
"""Standard deviations in an error bar: 1 in 16,000 lies outside, for Gaussian errors."""


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
        """Free numbers in the label, λ not counted."""
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
        tie = (1 - label[a] - label[b]) / max(len(label) - 2, 1) if self.pair else None
        if not self.pair:
            smoothing = 1 - (label[a] - label[b])
        else:
            assert tie is not None
            smoothing = len(label) * tie
        if self.total is not None:
            smoothing = 1 - self.total
        smooth = self.total is None or self.total < 1
        if not self.pair:
            return Augmentation("label-smoothing" if smooth else "hard", float(smoothing))
        share = (label[a] - smoothing / len(label)) / (1 - smoothing)
        return Augmentation(
            "mixup+label-smoothing" if smooth else "mixup",
            float(smoothing),
            float(max(share, 1 - share)),
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


@dataclass(frozen=True, eq=False)
class Fit:
    """A label model fitted at one root λ.

    Args:
        model: what was fitted.
        scale: λ.
        label: (K,), on the simplex up to its error bar.
        classes: (a, b), the largest entries of the label.
        residual: rms of the whitened residual; 1 is what noise and rounding explain.
        surplus: equations minus unknowns; a model without surplus fits anything.
        bar: the largest error bar (4 standard deviations) of an entry of the label, if the model
            is right.
    """

    model: LabelModel
    scale: float
    label: Array
    classes: tuple[int, int]
    residual: float
    surplus: int
    bar: float

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation that the label shows."""
        return self.model.describe(self.label, *self.classes)


def fit_label(layer: LastLayer, model: LabelModel, scale: float) -> Fit | None:
    """Fit one model by Gauss-Newton on (λ, β), starting near a root.

    Args:
        layer: the rank-one problem.
        model: which labels.
        scale: λ, near a root.

    Returns:
        The fit, or None where it doesn't settle.
    """
    logits = layer.logits
    label = softmax(scale * logits) - layer.alpha / scale
    a, b = (int(k) for k in np.argsort(-label)[:2])
    base, basis = model.basis(len(label), a, b)
    beta: Array = np.linalg.lstsq(basis, label - base, rcond=None)[0]
    settled = False
    for _ in range(20):
        label = base + basis @ beta
        p = softmax(scale * logits)
        jacobian = p * (logits - p @ logits)
        deviation = Deviation.at(layer, scale, p, label)
        target = deviation.whiten(layer.alpha - scale * (p - label), 1 - scale * layer.g[-1])
        by_scale = deviation.whiten(p - label + scale * jacobian, layer.g[-1])
        by_beta = deviation.whiten(-scale * basis, 0.0)
        design = np.column_stack([by_scale, by_beta])
        if settled:
            break
        step = np.asarray(np.linalg.lstsq(design, target, rcond=None)[0], dtype=np.float64)
        if not np.isfinite(step).all() or abs(step[0]) > 0.5 * abs(scale):
            return None
        settled = abs(step[0]) <= 1e-12 * abs(scale)  # the next step would be rounding
        scale += float(step[0])
        beta = beta + step[1:]
    surplus = len(label) - 2 - model.unknowns + int(layer.has_bias)
    label_std = np.linalg.norm(basis @ left_inverse(design)[1:], axis=1).max()
    residual = float(np.linalg.norm(target) / np.sqrt(max(surplus, 1)))
    return Fit(model, scale, label, (a, b), residual, surplus, BAR * float(label_std))


def left_inverse(design: Array) -> Array:
    """Return the (n, K) matrix that maps a whitened target to the least-squares step.

    Its rows' norms are the standard errors. A direction without an equation gets a huge one, not
    zero, as from a pseudo-inverse.
    """
    sizes = np.linalg.norm(design, axis=0)
    sizes = np.where(sizes > 0, sizes, np.finfo(float).tiny ** 0.5)
    left, singular, right = np.linalg.svd(design / sizes, full_matrices=False)
    inverse = right.T / np.maximum(singular, 1e-14) @ left.T
    return np.asarray(inverse / sizes[:, None])
