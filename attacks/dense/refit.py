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
from numpy.typing import NDArray

from attacks.numerics.gauss_newton import gauss_newton
from attacks.numerics.softmax import softmax
from attacks.victim.gradients import Array, Layer

REFIT_STEPS = 20
MOST_MISFIT = 10.0
"""Root mean square misfit, in standard deviations, from which entries don't count as tied."""


@dataclass(frozen=True, eq=False)
class Refit:
    """What the images say about the labels.

    Args:
        labels: (B, K), on the simplex up to noise; of the given labels' examples, as all here.
        scales: (B,), by which the given features have to be multiplied; 1 with a bias.
        bars: (B,), standard errors of the scales; 0 with a bias.
        misfit: (B,), root mean square misfit in standard deviations; 0 with a bias.
    """

    labels: Array
    scales: Array
    bars: Array
    misfit: Array


def refit_labels(head: Layer, features: Array, labels: Array, batch: int) -> Refit:
    """Fit labels and scales.

    Args:
        head: the last layer with its gradient, of the mean loss.
        features: (N, D), all its inputs, linearly independent, with their recovered scales.
        labels: (B, K), those of the first inputs, as recovered; they say which entries are tied.
        batch: the examples that the gradient is the mean of.
    """
    known = head.augmented(features)
    rows = len(labels)
    c, spread = coefficients(head, known, batch)
    c, spread, logits = c[:rows], spread[:rows], known[:rows] @ head.weight.T
    if head.has_bias:
        return Refit(softmax(logits) - c, np.ones(rows), np.zeros(rows), np.zeros(rows))
    fits = [_fit(*row, head.eps) for row in zip(logits, c, spread, labels, strict=True)]
    return Refit(*(np.array([fit[i] for fit in fits]) for i in range(4)))


def coefficients(
    head: Layer, known: Array, batch: int, noise_std: float = 0.0
) -> tuple[Array, Array]:
    """Return C (N, K) with `G = Cᵀ known / B`, and standard deviations of its entries.

    Args:
        head: the last layer with its gradient G.
        known: (N, D), its inputs, with the bias's.
        batch: B.
        noise_std: of what G has beside rounding.
    """
    # A sum over examples rounds relative to its terms, which may cancel.
    size = np.sqrt(np.mean(head.gradient**2, axis=1, keepdims=True))
    rounding = np.hypot(np.hypot(head.rounding, head.eps * size), noise_std) + 1e-300
    c = np.empty((len(known), len(head.gradient)))
    spread = np.empty_like(c)
    for k, (row, errors) in enumerate(zip(head.gradient, rounding, strict=True)):
        weight = 1 / errors
        q, r = np.linalg.qr((known * weight).T)
        inverse = np.linalg.inv(r)
        c[:, k] = batch * (inverse @ (q.T @ (row * weight)))
        spread[:, k] = batch * np.linalg.norm(inverse, axis=1)
    return c, spread


def _fit(
    z: Array, c: Array, spread: Array, label: Array, eps: float
) -> tuple[Array, float, float, float]:
    """Return label, scale, its standard error and the misfit for one example's logits z (K,)."""
    tied = np.argsort(label)[: max(len(label) - 2, 1)]

    def equations(s: float) -> tuple[Array, Array, float]:
        """Return the tied entries' derivatives by s and their tie, residuals, and tie."""
        p = softmax(s * z)
        slope = p + s * p * (z - p @ z)
        value = s * p - c
        std = np.hypot(spread, eps * (p + np.abs(c)))[tied]
        columns = np.stack([slope[tied], -np.ones(len(tied))], axis=1) / std[:, None]
        tie = float(np.sum(value[tied] / std**2) / np.sum(1 / std**2))
        return columns, (value[tied] - tie) / std, tie

    def step(x: Array) -> Array:
        columns, r, _ = equations(float(x[0]))
        return np.asarray(-(np.linalg.pinv(columns.T @ columns) @ (columns.T @ r))[:1])

    x, _ = gauss_newton(step, np.ones(1), scales=1, longest=0.5, tolerance=1e-14, most=REFIT_STEPS)
    s = float(x[0])
    columns, r, tie = equations(s)
    variance = np.linalg.pinv(columns.T @ columns)
    misfit = float(np.sqrt(np.sum(r**2) / max(len(tied) - 2, 1)))
    square = float(variance[0, 0])
    bar = square**0.5 * max(misfit, 1.0) if square > 0 else np.inf
    return _with_ties(softmax(s * z) - c / s, tied, tie / s, spread / s, misfit), s, bar, misfit


def _with_ties(
    label: Array, tied: NDArray[np.intp], tie: float, std: Array, misfit: float
) -> Array:
    """Return a label (K,) whose tied entries are equal, if that is what the gradient shows.

    The second largest is one of them where it differs by no more than its error, and the largest
    takes what is left of the sum.
    """
    if misfit > MOST_MISFIT or len(tied) < 3:
        return label
    result = label.copy()
    result[tied] = tie
    first, second = np.argsort(-label)[:2]
    if abs(label[second] - tie) < 4 * max(misfit, 1.0) * std[second]:
        result[second] = tie
        result[first] = 1 - (result.sum() - result[first])
    return result
