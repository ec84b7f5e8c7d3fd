"""Labels and scales of a batch, fitted again from its images.

An image fixes its last feature's direction d, far more exactly than the last layer's gradient does
alone. With all directions `D̂` (B, D) known, that gradient `G = ∂L/∂W` gives

    C = B G pinv(D̂),      c_b = s_b (p_b − y_b),      p_b = softmax(s_b W d_b),

and section 1's scalar problem is left for each example: the scale s at which all entries of
`s p(s) − c` are equal but those of the label's own classes. Here it starts at the recovered scale
and takes a few Gauss-Newton steps. With a bias there is no scale to find.

A weight update rounds small weights less than large ones, by known amounts: every row of G is
solved for by weighted least squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from attacks.fully_connected import Layer
from attacks.last_layer import Array

STEPS = 20


@dataclass(frozen=True, eq=False)
class Refit:
    """What the images say about the labels.

    Args:
        labels: (B, K), on the simplex up to noise.
        scales: (B,), by which the given features have to be multiplied; 1 with a bias.
        bars: (B,), standard errors of the scales; 0 with a bias.
        misfit: (B,), root mean square misfit in standard deviations; 0 with a bias.
    """

    labels: Array
    scales: Array
    bars: Array
    misfit: Array


def refit_labels(head: Layer, features: Array, labels: Array) -> Refit:
    """Fit labels and scales.

    Args:
        head: the last layer with its gradient, of the mean loss.
        features: (B, D), its inputs, linearly independent; with their recovered scales.
        labels: (B, K), as recovered; they say which entries are tied.
    """
    known = head.augmented(features)
    c, spread = _coefficients(head, known)
    logits = known @ head.weight.T
    if head.has_bias:
        rows = len(features)
        return Refit(softmax(logits, axis=1) - c, np.ones(rows), np.zeros(rows), np.zeros(rows))
    fits = [_fit(*row) for row in zip(logits, c, spread, labels, strict=True)]
    return Refit(*(np.array([fit[i] for fit in fits]) for i in range(4)))


def _coefficients(head: Layer, known: Array) -> tuple[Array, Array]:
    """Return C (B, K) with `G = Cᵀ known / B`, and standard deviations of its entries."""
    batch = len(known)
    floor = 1e-12 * np.abs(head.gradient).max() + 1e-300
    c = np.empty((batch, len(head.gradient)))
    spread = np.empty_like(c)
    for k, (row, rounding) in enumerate(zip(head.gradient, head.rounding, strict=True)):
        weight = 1 / (rounding + floor)
        q, r = np.linalg.qr((known * weight).T)
        inverse = np.linalg.inv(r)
        c[:, k] = batch * (inverse @ (q.T @ (row * weight)))
        spread[:, k] = batch * np.linalg.norm(inverse, axis=1)
    return c, spread


def _fit(z: Array, c: Array, spread: Array, label: Array) -> tuple[Array, float, float, float]:
    tied = np.argsort(label)[: max(len(label) - 2, 1)]
    s = 1.0
    variance = np.zeros((2, 2))
    r = np.zeros(1)
    for _ in range(STEPS):
        p = softmax(s * z)
        slope = p + s * p * (z - p @ z)
        value = s * p - c
        std = np.hypot(spread, 1e-7 * p)[tied]
        columns = np.stack([slope[tied], -np.ones(len(tied))], axis=1) / std[:, None]
        variance = np.linalg.pinv(columns.T @ columns)
        tie = np.sum(value[tied] / std**2) / np.sum(1 / std**2)
        r = (value[tied] - tie) / std
        step = -float((variance @ (columns.T @ r))[0])
        s = float(np.clip(s + step, s / 2, 2 * s))
        if abs(step) < 1e-14:
            break
    misfit = float(np.sqrt(np.sum(r**2) / max(len(tied) - 2, 1)))
    bar = float(np.sqrt(variance[0, 0])) * max(misfit, 1.0)
    return softmax(s * z) - c / s, s, bar, misfit
