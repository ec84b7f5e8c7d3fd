"""The gradient of the last layer for one example: the rank-one problem behind label recovery."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.numerics.softmax import softmax
from attacks.one_example.rank_one import Errors, rank_one, sample_columns
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.gradients import (
    HUGE,
    Array,
    Matrix,
    as_double,
    as_numpy,
    parameters_of,
    read_head,
)
from attacks.victim.network import Network

OWN_EPS = 16 * float(np.finfo(np.float64).eps)
"""Relative error of what is computed here, in float64: about a dozen roundings."""


@dataclass(frozen=True, eq=False)
class Problem:
    """`G = ∂L/∂W = c (p − y) xᵀ`, estimated as `α gᵀ` with ‖g‖ = 1, so that `x = λ g`.

    c is 1 unless the gradient was scaled. With a bias, `∂L/∂b` is a further column of G whose
    feature is the constant 1, and b a further column of W: that fixes λ.

    Args:
        α: (K,), with sum 0.
        g: (D,), or (D+1,) with a bias; zero where every gradient is.
        weight: (K, D), any floating type.
        bias: (K,); None without a bias.
        sigma: standard deviation of the noise in G's entries, root mean square.
        rounding: what float rounding alone makes of it.
        σ_α: (K,), standard deviations of α.
        σ_g: of g, likewise.
        eps: machine epsilon of the precision that the client computed in, at least `OWN_EPS`.
        drift: Σ_k (G g)_k before centring: 0 but for errors, since p and y both sum to 1.
        is_coarse: whether the gradient, or the weights that it was taken from, have 16 bits.
        offset: (K,), of the logits: a bias whose gradient fixes no λ; None without one.
    """

    α: Array
    g: Array
    weight: Matrix
    bias: Array | None
    sigma: float
    rounding: float
    σ_α: Array
    σ_g: Array
    eps: float
    drift: float = 0.0
    is_coarse: bool = False
    offset: Array | None = None

    @property
    def width(self) -> int:
        """D."""
        return int(self.weight.shape[1])

    def p(self, λ: Array | float) -> Array:
        """Return `p(λ) = softmax(λ W g + b)` for λ (N,), (N, K); for a number, (K,)."""
        scaled = np.multiply.outer(λ, self.logits)
        return softmax(scaled if self.offset is None else scaled + self.offset)

    @property
    def direction_error(self) -> float:
        """Relative error that noise leaves in g, over all its entries: σ √D / ‖α‖."""
        return float(np.linalg.norm(self.σ_g))

    @property
    def is_noisy(self) -> bool:
        """Whether the noise is more than float rounding explains."""
        return self.sigma > 4 * self.rounding

    def sign_of_features(self) -> int:
        """Return the sign of λ where features are never negative."""
        return 1 if self.g[: self.width].sum() >= 0 else -1

    @cached_property
    def logits(self) -> Array:
        """W g (+ b), the logits at λ = 1, (K,)."""
        product = self.weight @ self.g[: self.width].astype(self.weight.dtype)
        direct = np.asarray(product, dtype=np.float64)
        return direct if self.bias is None else direct + self.bias * self.g[-1]

    @cached_property
    def _logit_squares(self) -> Array:
        """Σ_j W_kj² g_j² and Σ_j W_kj² Var(g_j), (K, 2); without noise, by a sample of columns."""
        weights = np.stack([self.g**2, self.σ_g**2], axis=1)
        direct = weights[: self.width]
        columns = np.arange(self.width)
        if not self.is_noisy:
            columns = sample_columns(self.g[: self.width], len(self.α))
        share = direct[columns].sum(axis=0) / np.maximum(direct.sum(axis=0), 1e-300)
        squares = np.square(self.weight[:, columns].astype(np.float64)) @ direct[columns]
        squares /= np.maximum(share, 1e-300)
        return squares if self.bias is None else squares + np.outer(self.bias**2, weights[-1])

    @property
    def logit_squares(self) -> Array:
        """Σ_j W_kj² g_j², (K,): what rounds in the logits."""
        return np.asarray(self._logit_squares[:, 0])

    @property
    def logit_noise(self) -> Array:
        """Σ_j W_kj² Var(g_j), (K,): the variance of the logits at λ = 1."""
        return np.asarray(self._logit_squares[:, 1])

    def logit_covariance(self, classes: NDArray[np.intp]) -> Array:
        """Return the covariance of some classes' logits at λ = 1, (n, n)."""
        part = self.weight[classes].astype(np.float64)
        covariance = (part * self.σ_g[: self.width] ** 2) @ part.T
        if self.bias is not None:
            b = self.bias[classes] * self.σ_g[-1]
            covariance += np.outer(b, b)
        return np.asarray(covariance)

    def with_single_precision_labels(self) -> Problem:
        """Allow for labels that were rounded to float32, whatever the network computes in."""
        return dataclasses.replace(self, eps=max(self.eps, float(np.finfo(np.float32).eps)))

    @classmethod
    def of(cls, leak: GradientLeak, network: Network) -> Problem:
        """Take the last layer's gradient out of a leak.

        Raises:
            NotApplicable: the gradient is missing, not finite, zero, or not of rank one.
        """
        weight, bias = read_head(leak, network)
        names, has_bias = parameters_of(network, network.head_name), bias is not None
        gradient = as_numpy(weight)
        if bias is not None:
            gradient = np.hstack([gradient, as_numpy(bias)[:, None]])
        if not np.ptp(gradient, axis=0).max() > 1 / HUGE:
            raise NotApplicable("the last layer's gradient is equal for all classes")
        α, g, drift, residual, second = rank_one(gradient)
        errors = Errors.of_rounding(leak, names, α, g)
        rounding = errors.rms
        known = leak.told.noise_std
        measured = residual if known is None or not leak.lr else known / leak.lr
        sigma = max(measured, rounding)
        live = g != 0  # a dead feature's column is zero altogether, and carries no noise
        noise = Errors.of_noise(sigma, α, g, live)
        dtypes = leak.gradients[names[0]].dtype, torch.from_numpy(gradient).dtype
        eps = max(torch.finfo(dtype).eps for dtype in dtypes)
        if second > errors.plus(noise).largest + 16 * eps * float(np.linalg.norm(α)):
            raise NotApplicable(
                "beside rank one the last layer's gradient holds more than noise: several "
                "examples, or a defense that changes entries one by one"
            )
        # Rounding differs from entry to entry, and the measured rest says by how much it is off.
        errors = noise if sigma > 4 * rounding else errors.times((sigma / rounding) ** 2)
        # A product with G is as exact as its type.
        product = (2 * eps) ** 2
        own = errors.rows + product * α**2 + (OWN_EPS * float(np.linalg.norm(α))) ** 2
        return cls(
            α,
            g,
            as_numpy(network.head.weight),
            as_double(network.head.bias) if has_bias else None,
            sigma,
            rounding,
            np.sqrt(own + own.mean() / len(α)),  # centring shares the rows' errors
            np.sqrt(errors.columns / float(α @ α) ** 2 + product * g**2),
            max(float(torch.finfo(network.head.weight.dtype).eps), OWN_EPS),
            drift=drift,
            is_coarse=leak.is_coarse(names),
        )
