"""The gradient of the last layer for one example: the rank-one problem behind label recovery."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.network import Network
from attacks.types import GradientLeak, NotApplicable

Array = NDArray[np.float64]
HUGE = 1e100
"""Beyond it, and below its inverse, squares leave float64's range."""
OWN_EPS = 16 * float(np.finfo(np.float64).eps)
"""Relative error of what is computed here, in float64: about a dozen roundings."""


@dataclass(frozen=True, eq=False)
class LastLayer:
    """`G = ∂L/∂W = (p − y) xᵀ`, estimated as `α gᵀ` with ‖g‖ = 1, so that `x = λ g`.

    With a bias, `∂L/∂b` is a further column of G whose feature is the constant 1, and b a further
    column of W: that fixes λ.

    Args:
        alpha: (K,), with sum 0.
        g: (D,), or (D+1,) with a bias; zero where every gradient is.
        weight: (K, D) or (K, D+1).
        has_bias: whether the last column is the bias.
        sigma: standard deviation of the noise in G's entries, root mean square.
        rounding: what float rounding alone makes of it.
        alpha_sigma: (K,), standard deviations of α.
        g_sigma: of g, likewise.
        bias_sigma: the noise in ∂L/∂b; 0 without a bias.
        eps: unit roundoff of the precision that the client computed in, at least `OWN_EPS`.
    """

    alpha: Array
    g: Array
    weight: Array
    has_bias: bool
    sigma: float
    rounding: float
    alpha_sigma: Array
    g_sigma: Array
    bias_sigma: float
    eps: float

    @property
    def direction_error(self) -> float:
        """Relative error that noise leaves in g, over all its entries: σ √D / ‖α‖."""
        return float(self.sigma * np.sqrt(len(self.g)) / np.linalg.norm(self.alpha))

    def sign_of_features(self) -> int:
        """Return the sign of λ where features are never negative."""
        width = len(self.g) - self.has_bias
        return 1 if self.g[:width].sum() >= 0 else -1

    @cached_property
    def logits(self) -> Array:
        """W g, the logits at λ = 1, (K,)."""
        return self.weight @ self.g

    @cached_property
    def logit_squares(self) -> Array:
        """Σ_j W_kj² g_j², (K,): what rounds in the logits."""
        return np.asarray(self.weight**2 @ self.g**2)

    @cached_property
    def logit_noise(self) -> Array:
        """Σ_j W_kj² Var(g_j), (K,): the variance of the logits at λ = 1."""
        return np.asarray(self.weight**2 @ self.g_sigma**2)

    @cached_property
    def gram(self) -> Array:
        """W Wᵀ, (K, K)."""
        return self.weight @ self.weight.T

    @property
    def is_noisy(self) -> bool:
        """Whether the noise is more than float rounding explains."""
        return self.sigma > 4 * self.rounding

    @classmethod
    def of(cls, leak: GradientLeak, network: Network) -> LastLayer:
        """Take the last layer's gradient out of a leak.

        Raises:
            NotApplicable: the gradient is missing, not finite, zero, or not of rank one.
        """
        weight_name = _join(network.head_name, "weight")
        bias_name = _join(network.head_name, "bias")
        if weight_name not in leak.gradients:
            raise NotApplicable(f"the gradient of the last layer, {weight_name!r}, is missing")
        gradient = leak.gradients[weight_name].detach().double().numpy()
        weight = network.head.weight.detach().double().numpy()
        errors = leak.rounding(weight_name).numpy()
        # Of a gradient that is zero, rounding can't have taken anything; of an update, it can.
        rounding = _rms(errors[errors > 0])
        bias_sigma = 0.0
        has_bias = bias_name in leak.gradients
        if network.head.bias is not None and not has_bias:
            raise NotApplicable(f"the gradient of the last layer's bias, {bias_name!r}, is missing")
        if has_bias:
            column = leak.gradients[bias_name].detach().double().numpy()[:, None]
            gradient = np.hstack([gradient, column])
            bias = network.head.bias.detach().double().numpy()[:, None]
            weight = np.hstack([weight, bias])
            errors = np.hstack([errors, leak.rounding(bias_name).numpy()[:, None]])
            bias_sigma = _rms(errors[:, -1])
        if not np.abs(gradient).max() < HUGE:
            raise NotApplicable("the last layer's gradient has NaN or infinite entries")
        if not np.ptp(gradient, axis=0).max() > 1 / HUGE:
            raise NotApplicable("the last layer's gradient is zero, or equal for all classes")
        alpha, g, residual, second = rank_one(gradient, zero_sum=True)
        known = leak.knowledge.noise_std
        measured = residual if known is None or not leak.lr else known / leak.lr
        sigma = max(measured, rounding)
        if sigma > 4 * rounding:
            bias_sigma = max(bias_sigma, sigma) if has_bias else 0.0
        limit = _largest_singular_value(np.hypot(errors, sigma * gradient.any(axis=0)))
        if second > limit + OWN_EPS * np.linalg.norm(alpha):
            raise NotApplicable(
                "beside rank one the last layer's gradient holds more than noise: several "
                "examples, or a defense that changes entries one by one"
            )
        eps = max(float(torch.finfo(network.head.weight.dtype).eps), OWN_EPS)
        # Rounding differs from entry to entry, and the measured rest says by how much it is off.
        noise = np.full_like(errors, sigma)
        if sigma <= 4 * rounding:
            noise = errors * (sigma / rounding)
        own = noise**2 @ g**2 + (OWN_EPS * float(np.linalg.norm(alpha))) ** 2
        alpha_sigma = np.sqrt(own + own.mean() / len(alpha))  # centring shares the rows' errors
        g_sigma = np.sqrt(alpha**2 @ noise**2) / float(alpha @ alpha)
        return cls(
            alpha, g, weight, has_bias, sigma, rounding, alpha_sigma, g_sigma, bias_sigma, eps
        )


def rank_one(gradient: Array, *, zero_sum: bool) -> tuple[Array, Array, float, float]:
    """Estimate `G ≈ α gᵀ` by its leading singular pair, with ‖g‖ = 1.

    Args:
        gradient: (K, D), not zero.
        zero_sum: whether α sums to 0, as in the last layer, where p and y both sum to 1.

    Returns:
        α (K,), g (D,); the standard deviation of what is left, over the entries of columns that
        aren't zero altogether (a dead feature's column is exactly zero and carries no noise); and
        its largest singular value.
    """
    centred = gradient - gradient.mean(axis=0) if zero_sum else gradient
    g = centred[np.argmax(np.einsum("kd,kd->k", centred, centred))]
    g = g / np.linalg.norm(g)
    for _ in range(200):
        before, g = g, centred.T @ (centred @ g)
        g /= np.linalg.norm(g)
        if np.abs(g - before).max() < 1e-15:
            break
    alpha = centred @ g
    rest = centred - np.outer(alpha, g)
    live = int(gradient.any(axis=0).sum())
    freedom = max((len(alpha) - 1 - zero_sum) * (live - 1), 1)
    sigma = float(np.linalg.norm(rest) / np.sqrt(freedom))
    second = rest.T @ (rest @ rest[np.argmax(np.einsum("kd,kd->k", rest, rest))])
    second /= max(float(np.linalg.norm(second)), np.finfo(float).tiny)
    return alpha, g, sigma, float(np.linalg.norm(rest @ second))


def _largest_singular_value(std: Array) -> float:
    """Bound that of independent noise of standard deviations (K, D), but for 1 case in 100,000.

    A. S. Bandeira, R. van Handel, "Sharp nonasymptotic bounds on the norm of random matrices with
    independent entries", Annals of Probability 2016, up to constants that are 1 for equal entries.
    """
    variance = std**2
    rows, columns = (np.sqrt(variance.sum(axis=axis).max()) for axis in (1, 0))
    return float(rows + columns + 5 * std.max())


def _join(module: str, parameter: str) -> str:
    return f"{module}.{parameter}" if module else parameter


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else 0.0
