"""What noise and float rounding do to a rank-one gradient: the errors that a fit has to allow.

The letters are those of `attacks.labels.soft_label`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dtrtrs
from scipy.stats import chi2

from attacks.numerics.least_squares import BAR
from attacks.one_example.problem import Problem
from attacks.victim.gradients import Array

NOISE_QUANTILE = 1 - 1e-5
"""Share of the residuals at a true root that are accepted as Gaussian noise."""
ROUNDED_RESIDUAL = 6.0
"""Largest residual that float rounding explains, whose size is known roughly: true roots have up to
3.6, false ones mostly hundreds and more."""
ROUNDED_DRIFT = 30.0
"""Sum of G's rows that float rounding explains, in standard deviations: true roots have up to 7,
gradients with single rows scaled 3,000 and more."""
MATTERS = 0.1
"""Share of a class's own deviation from which on that of the logits counts as correlated."""
MOST_CORRELATED = 600
"""Classes whose correlations are kept, at most: the covariance costs their square times D."""


@dataclass(frozen=True, eq=False)
class Deviation:
    """What noise and rounding make of `α − (p − y)/s`, to first order.

    α carries noise of its own; that of g reaches p through the logits `λ W g`, where it moves the
    classes together; the client rounded logits, p and y in its own precision. With a bias there is
    one more equation, `λ g_bias = 1`.

    Args:
        std: (K,) standard deviations.
        correlated: the classes whose covariance is kept whole, (n,).
        factor: (n, n), its lower Cholesky factor.
        bias: standard deviation of `λ g_bias`; None without a bias.
    """

    std: Array
    correlated: NDArray[np.intp]
    factor: Array
    bias: float | None

    @classmethod
    def at(
        cls,
        problem: Problem,
        λ: float,
        p: Array,
        label: Array,
        s: float,
        *,
        is_whole: bool = True,
    ) -> Deviation:
        """Linearise at a root; without correlations unless `is_whole`."""
        bias = None
        if problem.bias is not None:
            bias = abs(λ) * float(problem.σ_g[-1]) + problem.eps
        own = problem.σ_α**2 + (problem.eps / s * (p + np.abs(label))) ** 2
        by_logits = (p / s) ** 2 * _logit_variance(problem, λ)
        std = np.sqrt(own + by_logits)
        correlated, factor = np.empty(0, dtype=np.intp), np.empty((0, 0))
        if problem.is_noisy and is_whole:
            share = by_logits / own
            correlated = np.flatnonzero(share > MATTERS**2)
            if len(correlated) > MOST_CORRELATED:
                correlated = np.sort(np.argsort(share)[-MOST_CORRELATED:])
        if len(correlated):
            part = p[correlated]
            slope = (np.diag(part) - np.outer(part, part)) / s
            logits = λ**2 * problem.logit_covariance(correlated)
            rounding = (2 * problem.eps * λ) ** 2 * problem.logit_squares[correlated]
            logits[np.diag_indices_from(logits)] += rounding
            covariance = slope @ logits @ slope
            covariance[np.diag_indices_from(covariance)] += own[correlated]
            try:
                factor = np.asarray(np.linalg.cholesky(covariance))
            except np.linalg.LinAlgError:  # variances too far apart for float64
                correlated, factor = correlated[:0], factor[:0, :0]
        return cls(std, correlated, factor, bias)

    def whiten(self, rows: Array, bias_row: float) -> Array:
        """Divide rows (K,) or (K, n) by their standard deviation, and the bias's row by its own."""
        white = (rows.T / self.std).T
        if len(self.correlated):
            white[self.correlated] = dtrtrs(self.factor, rows[self.correlated], lower=1)[0]
        if self.bias is None:
            return white
        return np.concatenate([white, np.full((1, *rows.shape[1:]), bias_row / self.bias)])

    def adjoint(self, white: Array) -> Array:
        """Apply the transpose of `whiten` to (K, n), the bias's row left out."""
        rows = (white[: len(self.std)].T / self.std).T
        if len(self.correlated):
            part = white[self.correlated]
            rows[self.correlated] = dtrtrs(self.factor, part, lower=1, trans=1)[0]
        return rows

    def precision(self) -> Array:
        """Return the diagonal of the inverse covariance, (K,)."""
        diagonal = self.std**-2
        if len(self.correlated):
            inverse = dtrtrs(self.factor, np.eye(len(self.correlated)), lower=1)[0]
            diagonal[self.correlated] = np.einsum("ij,ij->j", inverse, inverse)
        return diagonal


def expected_variance(problem: Problem, λ: Array, p: Array, classes: NDArray[np.intp]) -> Array:
    """Return the variance that noise and rounding give `λ p(λ) − α` at roots λ (N,).

    Args:
        problem: the rank-one problem.
        λ: λ, (N,).
        p: (N, n), of some classes.
        classes: which, (n,).

    Returns:
        (N, n).
    """
    λ = np.asarray(λ)[:, None]
    own = problem.σ_α[classes] ** 2 + (λ * problem.eps * p) ** 2
    return np.asarray(own + (λ * p) ** 2 * _logit_variance(problem, λ)[..., classes])


def _logit_variance(problem: Problem, λ: Array | float) -> Array:
    """Return the variance of each logit: noise in the feature, and the client's own rounding."""
    return np.asarray(λ**2 * (problem.logit_noise + (2 * problem.eps) ** 2 * problem.logit_squares))


def residual_limit(problem: Problem, surplus: int) -> float:
    """Return up to which residual, rms in standard deviations, noise or rounding explains a fit.

    Args:
        problem: the rank-one problem.
        surplus: equations minus unknowns.
    """
    return _noise_limit(max(surplus, 1)) if problem.is_noisy else ROUNDED_RESIDUAL


def drift_limit(problem: Problem, s: float) -> float:
    """Return up to which sum of G's rows, 0 but for errors, noise or rounding explains it."""
    spread = np.hypot(np.linalg.norm(problem.σ_α), 2 * problem.eps / abs(s))
    return float((BAR + 1 if problem.is_noisy else ROUNDED_DRIFT) * spread)


@functools.cache
def _noise_limit(freedom: int) -> float:
    return float(np.sqrt(chi2.ppf(NOISE_QUANTILE, freedom) / freedom))
