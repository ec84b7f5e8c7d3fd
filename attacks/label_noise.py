"""What noise and float rounding do to a rank-one gradient: the errors that a fit has to allow.

The letters are those of `attacks.soft_label`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import softmax

from attacks.last_layer import Array, LastLayer

DENSE_LIMIT = 512
"""Classes up to which the covariance is kept whole; beyond, its diagonal."""


@dataclass(frozen=True, eq=False)
class Deviation:
    """What noise and rounding make of `α − λ (p − y)`, to first order.

    α carries the noise σ; g carries σ/‖α‖, which reaches p through the logits `λ W g`; the client
    rounded logits, p and y in its own precision. With a bias there is one more equation,
    `λ g_bias = 1`.

    Args:
        factor: (K, K) lower Cholesky factor, or (K,) standard deviations where K is large.
        bias: standard deviation of `λ g_bias`; None without a bias.
    """

    factor: Array
    bias: float | None

    @classmethod
    def at(cls, layer: LastLayer, scale: float, p: Array, label: Array) -> Deviation:
        """Linearise at a root."""
        bias = None
        if layer.has_bias:
            bias = abs(scale) * layer.bias_sigma / float(np.linalg.norm(layer.alpha)) + layer.eps
        own = layer.alpha_sigma**2 + (scale * layer.eps * (p + np.abs(label))) ** 2
        variance = _logit_variance(layer, scale)
        if len(p) > DENSE_LIMIT:
            return cls(np.sqrt(own + (scale * p) ** 2 * variance), bias)
        logits = np.diag(variance)
        if layer.is_noisy:
            correlated = layer.gram - np.diag(np.diag(layer.gram))
            logits = logits + (scale * layer.sigma) ** 2 / (layer.alpha @ layer.alpha) * correlated
        slope = scale * (np.diag(p) - np.outer(p, p))
        covariance = np.diag(own) + slope @ logits @ slope
        factor: Array
        try:
            factor = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
        except np.linalg.LinAlgError:  # variances too far apart for float64
            factor = np.asarray(np.sqrt(np.diag(covariance)), dtype=np.float64)
        return cls(factor, bias)

    def whiten(self, rows: Array, bias_row: float) -> Array:
        """Divide rows (K,) or (K, n) by their standard deviation, and the bias's row by its own."""
        if self.factor.ndim == 1:
            white = (rows.T / self.factor).T
        else:
            white = np.asarray(solve_triangular(self.factor, rows, lower=True))
        if self.bias is None:
            return white
        extra = np.full((1, *rows.shape[1:]), bias_row / self.bias)
        return np.concatenate([white, extra])


def expected_variance(layer: LastLayer, scales: Array) -> Array:
    """Return the variance that noise and rounding give `λ p(λ) − α` at roots λ (N,); (N, K)."""
    scales = scales[..., None]
    p = softmax(scales * layer.logits, axis=-1)
    own = layer.alpha_sigma**2 + (scales * layer.eps * p) ** 2
    return np.asarray(own + (scales * p) ** 2 * _logit_variance(layer, scales))


def _logit_variance(layer: LastLayer, scale: Array | float) -> Array:
    """Return the variance of each logit: noise in the feature, and the client's own rounding."""
    return np.asarray(scale**2 * (layer.logit_noise + (2 * layer.eps) ** 2 * layer.logit_squares))
