"""Labels of few classes: what one example's gradient leaves open, a batch's may tell.

With two to four classes one example gives no more equations than its smoothing and a factor c on
the gradient have unknowns. Where a client smooths all labels alike, or not at all,

    e_b = c (p_b − y_b) = c (p_b − 1/K) − c (1 − ε)(o_b − 1/K),      o_b one-hot,

are R (K − 1) equations for c and ε. That they hold for labels that aren't so would be a
coincidence: p differs from example to example.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.numerics.least_squares import BAR, left_inverse
from attacks.one_example.noise import ROUNDED_RESIDUAL
from attacks.victim.gradients import Array

LEAST_SURPLUS = 4
"""Equations beyond the two unknowns."""


@dataclass(frozen=True, eq=False)
class CommonLabels:
    """A batch's labels under one smoothing.

    Args:
        labels: (R, K).
        smoothing: ε.
        factor: c.
        residual: rms of the misfit in standard deviations.
        bar: error bar of the labels' entries.
    """

    labels: Array
    smoothing: float
    factor: float
    residual: float
    bar: float


def common_labels(p: Array, mixtures: Array, spread: Array) -> CommonLabels | None:
    """Fit hard or equally smoothed labels; None where they don't explain the gradient.

    Args:
        p: the examples' softmax, (R, K).
        mixtures: e, (R, K).
        spread: standard deviations of their entries, (R, K).
    """
    classes = p.shape[1]
    one_hot = np.eye(classes)[np.argmax(p - mixtures, axis=1)]
    surplus = p.shape[0] * (classes - 1) - 2
    if surplus < LEAST_SURPLUS:
        return None
    design = np.stack([(p - 1 / classes) / spread, (1 / classes - one_hot) / spread], axis=-1)
    design, target = design.reshape(-1, 2), (mixtures / spread).ravel()
    inverse = left_inverse(design)
    factor, share = (float(x) for x in inverse @ target)
    residual = float(np.linalg.norm(target - design @ (factor, share)) / np.sqrt(surplus))
    if not (residual <= ROUNDED_RESIDUAL and factor > 0):
        return None
    smoothing = 1 - share / factor
    # ε = 1 − share / c, to first order.
    slope = np.array([share / factor**2, -1 / factor])
    bar = BAR * max(residual, 1.0) * float(np.linalg.norm(slope @ inverse))
    if not -bar <= smoothing <= 1 + bar:
        return None
    smoothing = min(max(smoothing, 0.0), 1.0)
    labels = (1 - smoothing) * one_hot + smoothing / classes
    return CommonLabels(labels, smoothing, factor, residual, bar)
