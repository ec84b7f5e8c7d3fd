"""Lower bounds on a privacy loss, from draws of a statistic under two neighbouring data sets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import beta

Values = NDArray[np.float64]
_CANDIDATES = 101
"""Thresholds that are tried, at equal steps in the pooled draws' ranks."""


def share_bounds(hits: int, draws: int, confidence: float) -> tuple[float, float]:
    """Return what a share is at least and at most, each with the given confidence.

    C. J. Clopper and E. S. Pearson, *The Use of Confidence or Fiducial Limits Illustrated in the
    Case of the Binomial*, Biometrika 1934.

    Example:
        >>> low, high = share_bounds(0, 100, 0.95)
        >>> low, round(high, 4)
        (0.0, 0.0295)
    """
    error = 1 - confidence
    low = float(beta.ppf(error, hits, draws - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(1 - error, hits + 1, draws - hits)) if hits < draws else 1.0
    return low, high


@dataclass(frozen=True)
class Rates:
    """How often a statistic is beyond a threshold: at most so, and at least so.

    Args:
        without: upper bound on the share in draws without the unit, in [0, 1].
        given: lower bound on the share in draws with it, in [0, 1].
    """

    without: float
    given: float

    @classmethod
    def counted(cls, without: Values, given: Values, threshold: float, confidence: float) -> Rates:
        """Count; both bounds hold together with the given confidence."""
        hits = int((without > threshold).sum()), int((given > threshold).sum())
        return cls.of_hits(hits, (len(without), len(given)), confidence)

    @classmethod
    def of_hits(cls, hits: tuple[int, int], draws: tuple[int, int], confidence: float) -> Rates:
        """Bound both shares, of draws without the unit and with it, by their hits."""
        each = 1 - (1 - confidence) / 2
        _, most = share_bounds(hits[0], draws[0], each)
        least, _ = share_bounds(hits[1], draws[1], each)
        return cls(most, least)

    def mu(self, sampling: float = 1.0) -> float:
        """Return the least μ, shift over noise, of a Gaussian mechanism that could do that.

        With the unit at the rate q, `given = (1−q) without + q Φ(Φ⁻¹(without) + μ)` at the best
        test; at q = 1 that is Dong, Roth and Su's trade-off function (*Gaussian Differential
        Privacy*, JRSS-B 2022, arXiv 1905.02383, equation 6).

        Returns:
            μ, at least 0: finite, since neither share is bounded by 0 or 1.
        """
        present = (self.given - (1 - sampling) * self.without) / sampling
        if not (present > 0 and self.without < 1):
            return 0.0
        return max(0.0, float(ndtri(min(present, 1.0)) - ndtri(self.without)))

    def epsilon(self, delta: float) -> float:
        """Return the least ε at δ of any mechanism that could do that, in nats, at least 0.

        `P(S) ≤ e^ε P'(S) + δ` for the values beyond the threshold, and for the others.
        """
        beyond, within = self.given - delta, 1 - self.without - delta
        found = [0.0]
        if beyond > 0:
            found.append(math.log(beyond / self.without))
        if within > 0 and self.given < 1:
            found.append(math.log(within / (1 - self.given)))
        return max(found)


def thresholds(without: Values, given: Values) -> Values:
    """Return thresholds to choose from, spread over two samples."""
    pooled = np.concatenate([without, given])
    spread: Values = np.quantile(pooled, np.linspace(0, 1, _CANDIDATES)[1:-1])
    return np.unique(np.concatenate([spread, np.quantile(without, (0.99, 0.999, 1.0))]))


def visible_from(claimed: float, draws: int, confidence: float) -> float:
    """Return the μ from which so many draws show, on average, that it isn't the claimed one.

    Args:
        claimed: μ, at least 0.
        draws: that are counted, of either data set.
        confidence: of the bound.

    Returns:
        μ, above the claimed one; infinity where no number of hits would show it.

    Example:
        >>> 0.2 < visible_from(0.2, 5000, 0.99) < 0.4
        True
    """

    def excess(mu: float) -> float:
        hits = round(draws * float(ndtr(-mu / 2)))
        return Rates.of_hits((hits, draws - hits), (draws, draws), confidence).mu() - claimed

    largest = 20.0
    if excess(largest) <= 0:
        return math.inf
    return float(brentq(excess, claimed, largest, xtol=1e-4))
