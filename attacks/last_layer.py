"""The gradient of the last layer for one example: the rank-one problem behind label recovery."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.network import Network
from attacks.types import GradientLeak, NotApplicable

Array = NDArray[np.float64]
Matrix = NDArray[Any]
HUGE = 1e100
"""Beyond it, and below its inverse, squares leave float64's range."""
OWN_EPS = 16 * float(np.finfo(np.float64).eps)
"""Relative error of what is computed here, in float64: about a dozen roundings."""
SAMPLE, RUN = 2**17, 16
"""Entries on which noise is measured where a matrix has many more, and how many lie together."""


@dataclass(frozen=True, eq=False)
class LastLayer:
    """`G = ∂L/∂W = c (p − y) xᵀ`, estimated as `α gᵀ` with ‖g‖ = 1, so that `x = λ g`.

    c is 1 unless the gradient was scaled. With a bias, `∂L/∂b` is a further column of G whose
    feature is the constant 1, and b a further column of W: that fixes λ.

    Args:
        alpha: (K,), with sum 0.
        g: (D,), or (D+1,) with a bias; zero where every gradient is.
        weight: (K, D), any floating type.
        bias: (K,); None without a bias.
        sigma: standard deviation of the noise in G's entries, root mean square.
        rounding: what float rounding alone makes of it.
        alpha_sigma: (K,), standard deviations of α.
        g_sigma: of g, likewise.
        eps: unit roundoff of the precision that the client computed in, at least `OWN_EPS`.
    """

    alpha: Array
    g: Array
    weight: Matrix
    bias: Array | None
    sigma: float
    rounding: float
    alpha_sigma: Array
    g_sigma: Array
    eps: float

    @property
    def width(self) -> int:
        """D."""
        return self.weight.shape[1]

    @property
    def direction_error(self) -> float:
        """Relative error that noise leaves in g, over all its entries: σ √D / ‖α‖."""
        return float(np.linalg.norm(self.g_sigma))

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
        """Σ_j W_kj² g_j² and Σ_j W_kj² Var(g_j), (K, 2); without noise, from a sample of columns."""
        weights = np.stack([self.g**2, self.g_sigma**2], axis=1)
        direct = weights[: self.width]
        columns = np.arange(self.width)
        if not self.is_noisy:
            columns = sample_columns(self.g[: self.width], len(self.alpha))
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
        covariance = (part * self.g_sigma[: self.width] ** 2) @ part.T
        if self.bias is not None:
            b = self.bias[classes] * self.g_sigma[-1]
            covariance += np.outer(b, b)
        return np.asarray(covariance)

    @classmethod
    def of(cls, leak: GradientLeak, network: Network) -> LastLayer:
        """Take the last layer's gradient out of a leak.

        Raises:
            NotApplicable: the gradient is missing, not finite, zero, or not of rank one.
        """
        weight_name, bias_name = (
            f"{network.head_name}.{parameter}".lstrip(".") for parameter in ("weight", "bias")
        )
        for name, parameter in ((weight_name, "weight"), (bias_name, "bias")):
            if getattr(network.head, parameter) is not None and name not in leak.gradients:
                which = "" if parameter == "weight" else "'s bias"
                raise NotApplicable(f"the gradient of the last layer{which}, {name!r}, is missing")
        gradient = leak.gradients[weight_name].detach().numpy()
        has_bias = network.head.bias is not None
        if has_bias:
            column = leak.gradients[bias_name].detach().numpy()[:, None]
            gradient = np.hstack([gradient, column])
        # NaN and infinities reach every sum that they are part of.
        limit = min(HUGE, float(np.finfo(gradient.dtype).max) ** 0.5)
        if not np.abs(gradient @ np.ones(gradient.shape[1], gradient.dtype)).max() < limit:
            raise NotApplicable("the last layer's gradient has NaN or infinite entries")
        if not np.ptp(gradient, axis=0).max() > 1 / HUGE:
            raise NotApplicable("the last layer's gradient is zero, or equal for all classes")
        alpha, g, residual, second = rank_one(gradient, zero_sum=True)
        names = (weight_name, bias_name) if has_bias else (weight_name,)
        errors = Errors.of_rounding(leak, names, alpha, g)
        rounding = errors.rms
        known = leak.knowledge.noise_std
        measured = residual if known is None or not leak.lr else known / leak.lr
        sigma = max(measured, rounding)
        live = g != 0  # a dead feature's column is zero altogether, and carries no noise
        noise = Errors.of_noise(sigma, alpha, g, live)
        own = 16 * float(np.finfo(gradient.dtype).eps) * float(np.linalg.norm(alpha))
        if second > (errors + noise).largest + own:
            raise NotApplicable(
                "beside rank one the last layer's gradient holds more than noise: several "
                "examples, or a defense that changes entries one by one"
            )
        # Rounding differs from entry to entry, and the measured rest says by how much it is off.
        errors = noise if sigma > 4 * rounding else errors.times((sigma / rounding) ** 2)
        # A product with G is as exact as its type.
        product = (2 * float(np.finfo(gradient.dtype).eps)) ** 2
        own = errors.rows + product * alpha**2 + (OWN_EPS * float(np.linalg.norm(alpha))) ** 2
        return cls(
            alpha,
            g,
            network.head.weight.detach().numpy(),
            network.head.bias.detach().double().numpy() if has_bias else None,
            sigma,
            rounding,
            np.sqrt(own + own.mean() / len(alpha)),  # centring shares the rows' errors
            np.sqrt(errors.columns / float(alpha @ alpha) ** 2 + product * g**2),
            max(float(torch.finfo(network.head.weight.dtype).eps), OWN_EPS),
        )


class Errors(NamedTuple):
    """Independent errors of variances v (K, D) in a gradient `α gᵀ`, as far as they matter.

    Args:
        rows: Σ_j v_kj g_j², (K,), the variances that they give α.
        columns: Σ_k v_kj α_k², (D,), those of g, times ‖α‖⁴.
        mean: of v, over the entries that aren't 0.
        row: the largest of the rows' sums of v.
        column: the largest of the columns' sums.
        most: the largest of all.
    """

    rows: Array
    columns: Array
    mean: float
    row: float
    column: float
    most: float

    @property
    def rms(self) -> float:
        """Root mean square, over the entries that have any error."""
        return self.mean**0.5

    @property
    def largest(self) -> float:
        """A bound of the errors' largest singular value, but for 1 case in 100,000.

        A. S. Bandeira, R. van Handel, "Sharp nonasymptotic bounds on the norm of random matrices
        with independent entries", Annals of Probability 2016, up to constants that are 1 for equal
        entries.
        """
        return self.row**0.5 + self.column**0.5 + 5 * self.most**0.5

    def __add__(self, other: Any) -> Errors:
        return Errors(*(one + two for one, two in zip(self, other, strict=True)))

    def times(self, factor: float) -> Errors:
        """Multiply all variances."""
        return Errors(*(factor * value for value in self))

    @classmethod
    def of_noise(cls, sigma: float, alpha: Array, g: Array, live: NDArray[np.bool_]) -> Errors:
        """Return those of noise of one variance in all live columns."""
        variance, size, count = sigma**2, float(alpha @ alpha), int(live.sum())
        rows = np.full(len(alpha), variance)
        columns = variance * size * live
        return cls(rows, columns, variance, variance * count, variance * len(alpha), variance)

    @classmethod
    def of_rounding(
        cls, leak: GradientLeak, names: tuple[str, ...], alpha: Array, g: Array
    ) -> Errors:
        """Return those of float rounding, as `GradientLeak.rounding` has them entry by entry."""
        if leak.update_dtype is not None:
            parts = [np.square(leak.rounding(name).numpy()) for name in names]
            v = np.hstack([part.reshape(len(alpha), -1) for part in parts])
            count = max(np.count_nonzero(v), 1)
            rows, columns = v @ g**2, alpha**2 @ v
            sums = v.sum(axis=1), v.sum(axis=0)
            mean = float(sums[0].sum()) / count
            return cls(rows, columns, mean, sums[0].max(), sums[1].max(), float(v.max()))
        # Relative to the entries, which are the products α_k g_j.
        eps = max(leak.roundoff(name) for name in names)
        a, b = (eps * alpha) ** 2, g**2
        count = max(np.count_nonzero(a) * np.count_nonzero(b), 1)
        mean = float(a.sum() * b.sum()) / count
        rows, columns = a * float(b @ b), float(alpha**2 @ a) * b
        most = float(a.max() * b.max())
        return cls(rows, columns, mean, float(a.max() * b.sum()), float(a.sum() * b.max()), most)


def rank_one(gradient: Matrix, *, zero_sum: bool) -> tuple[Array, Array, float, float]:
    """Estimate `G ≈ α gᵀ` by its leading singular pair, with ‖g‖ = 1.

    By the power method, in the gradient's own precision: a few products with G, no copy of it.

    Args:
        gradient: (K, D), not zero.
        zero_sum: whether α sums to 0, as in the last layer, where p and y both sum to 1.

    Returns:
        α (K,), g (D,); the standard deviation of what is left, over the entries of columns that
        aren't zero altogether (a dead feature's column is exactly zero and carries no noise); and
        its largest singular value. Both of the latter are taken from a sample of columns where the
        matrix is large.
    """
    draws = np.random.default_rng(0)
    dtype = gradient.dtype
    eps = float(np.finfo(dtype).eps)

    def times(vector: Array) -> Array:
        product = np.asarray(gradient @ vector.astype(dtype), dtype=np.float64)
        return np.asarray(product - product.mean() if zero_sum else product)

    # Features are mostly of one sign: then hardly anything cancels.
    alpha = times(1 + draws.uniform(-0.5, 0.5, gradient.shape[1]))
    for _ in range(200):
        unit = alpha / np.linalg.norm(alpha)
        g = np.asarray(gradient.T @ unit.astype(dtype), dtype=np.float64)
        g /= np.linalg.norm(g)
        alpha = times(g)
        if np.linalg.norm(alpha / np.linalg.norm(alpha) - unit) < 16 * eps:
            break
    columns = sample_columns(g, len(alpha))
    part = gradient[:, columns].astype(np.float64)
    if zero_sum:
        part -= part.mean(axis=0)
    along = part.T @ (part @ g[columns])  # again, in float64
    along /= np.linalg.norm(along)
    rest = part - np.outer(part @ along, along)
    freedom = max((len(alpha) - 1 - zero_sum) * (len(columns) - 1), 1)
    sigma = float(np.linalg.norm(rest) / np.sqrt(freedom))
    direction = rest @ draws.standard_normal(len(columns))
    for _ in range(3):
        direction /= max(float(np.linalg.norm(direction)), np.finfo(float).tiny)
        direction = rest @ (direction @ rest)
    return alpha, g, sigma, float(np.linalg.norm(direction)) ** 0.5


def sample_columns(g: Array, rows: int) -> NDArray[np.intp]:
    """Return the live columns (n,) of a matrix `α gᵀ`, or of a large one, a sample in short runs."""
    live = g != 0
    runs = max(SAMPLE // (rows * RUN), 2)
    if len(g) > 2 * runs * RUN:
        starts = np.linspace(0, len(g) - RUN, runs).astype(np.intp)
        some = (starts[:, None] + np.arange(RUN)).ravel()
        if np.count_nonzero(live[some]) > len(some) // 8:
            return some[live[some]]
    return np.flatnonzero(live)
