"""Another accountant, that shares nothing with those of `fl_sim.privacy`, to check them against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import logsumexp, ndtr

Array = NDArray[np.float64]
POINTS = 2**18
"""Of the mesh on which sums of losses are."""
_OUTSIDE = -32.0
"""Logarithm of what the mesh may leave out on either side: 1e-14."""


def convolved_epsilon(noise: float, sampling: float, releases: int, delta: float) -> float:
    """Return ε at δ of T releases, by the Fourier transform of one release's privacy loss.

    Gopi, Lee and Wutschitz, *Numerical Composition of Differential Privacy*, NeurIPS 2021, arXiv
    2106.02848: the loss is rounded to the nearest point of a mesh, and its distribution raised to
    the power T in Fourier space. An estimate, no bound: rounding errors are of both signs.

    Args:
        noise: σ/Δ, above 0.
        sampling: q, in (0, 1].
        releases: T, at least 1.
        delta: δ, in (0, 1).

    Returns:
        ε in nats, the larger of adding and removing a unit.
    """
    return max(_epsilon(_Loss(noise, sampling, sign), releases, delta) for sign in (1, -1))


class _Loss:
    """The privacy loss of one release, `log((1−q) + q e^((2x − 1)/2σ²))`.

    x is drawn with the unit where it is removed, from `(1−q) N(0, σ²) + q N(1, σ²)` (sign 1);
    without it where it is added, from N(0, σ²), and the loss is turned round (sign −1).
    """

    def __init__(self, noise: float, sampling: float, sign: int) -> None:
        self.noise, self.sampling, self.sign = noise, sampling, sign
        reach = math.sqrt(-2 * _OUTSIDE) * noise
        ends = self._loss(np.array([-reach, reach + (sign > 0)]))
        margin = 1e-6 * float(np.abs(ends).max())  # an atom stands at an end
        low, high = ends if sign > 0 else (-ends[1], -ends[0])
        self.low, self.high = low - margin, high + margin

    def masses(self, edges: Array) -> Array:
        """Return the probability of each interval between losses (N + 1,)."""
        places = self._place(self.sign * edges)
        # From the nearer tail, so that small masses aren't differences of numbers near 1.
        total = np.zeros(len(edges) - 1)
        for share, mean in self._shares():
            z = (places - mean) / self.noise
            tail = z[:-1] + z[1:] > 0
            total += share * np.abs(
                np.where(tail, ndtr(-z[:-1]) - ndtr(-z[1:]), ndtr(z[1:]) - ndtr(z[:-1]))
            )
        return total

    def mean(self) -> float:
        """Return the mean loss, by sums over normal draws, which converge exponentially."""
        z = np.linspace(-12, 12, 2**14)
        density = np.exp(-(z**2) / 2)
        density /= density.sum()
        losses = ((share, self._loss(mean + self.noise * z)) for share, mean in self._shares())
        return self.sign * float(sum(share * (density @ loss) for share, loss in losses))

    def _shares(self) -> tuple[tuple[float, float], ...]:
        """Return shares and means of the normals that x is drawn from."""
        both = ((1 - self.sampling, 0.0), (self.sampling, 1.0))
        return both if self.sign > 0 else ((1.0, 0.0),)

    def _loss(self, x: Array) -> Array:
        logs = (2 * x - 1) / (2 * self.noise**2) + math.log(self.sampling)
        absent = math.log1p(-self.sampling) if self.sampling < 1 else -math.inf
        return np.logaddexp(absent, logs)

    def _place(self, losses: Array) -> Array:
        """Return x of each loss; minus infinity below the least."""
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = losses + np.log1p(-(1 - self.sampling) * np.exp(-np.maximum(losses, -700)))
        excess = np.where(np.isnan(excess), -np.inf, excess)
        return self.noise**2 * (excess - math.log(self.sampling)) + 0.5


def _epsilon(loss: _Loss, releases: int, delta: float) -> float:
    low, high = _window(loss, releases)
    step = (high - low) / POINTS
    first, last = math.floor(loss.low / step), math.ceil(loss.high / step)
    circle, mean = np.zeros(POINTS), 0.0
    for start in range(first, last + 1, POINTS):  # losses far apart share a place on the circle
        whole = np.arange(start, min(start + POINTS, last + 1))
        masses = loss.masses((np.append(whole, whole[-1] + 1) - 0.5) * step)
        circle[whole % POINTS] += masses
        mean += float(masses @ (whole * step))
    sums = np.fft.irfft(np.fft.rfft(circle) ** releases, POINTS)
    begin = math.floor(low / step)
    total = (begin + (np.arange(POINTS) - begin) % POINTS) * step
    return _root(total + releases * (loss.mean() - mean), sums, delta)


def _window(loss: _Loss, releases: int) -> tuple[float, float]:
    """Return an interval that the sum of T losses hardly leaves, by Chernoff's bound."""
    edges = np.linspace(loss.low, loss.high, 2**15 + 1)
    with np.errstate(divide="ignore"):
        masses = np.log(loss.masses(edges))
    rates = np.geomspace(1e-3, 1e4, 60) / (loss.high - loss.low)

    def reached(ends: Array) -> float:
        growth = np.array([logsumexp(masses + rate * ends) for rate in rates])
        return float(np.min((releases * growth - _OUTSIDE) / rates))

    return -reached(-edges[:-1]), reached(edges[1:])


def _root(losses: NDArray[Any], masses: NDArray[Any], delta: float) -> float:
    """Return the ε at which `E[(1 − e^(ε − L))⁺]` is δ."""

    def excess(epsilon: float) -> float:
        above = losses > epsilon
        return float(masses[above] @ -np.expm1(epsilon - losses[above])) - delta

    if excess(0.0) <= 0:
        return 0.0
    return float(brentq(excess, 0.0, losses.max(), xtol=1e-12))
