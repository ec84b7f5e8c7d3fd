"""The exact ε of the Gaussian mechanism."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import erfcx, log_ndtr, ndtri

_LEAST = 5e-324  # the least number above 0: where 1 − r rounds to 0, its logarithm stays finite


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the least ε at δ of normal noise between means that are μ of its deviations apart.

    Balle and Wang, *Improving the Gaussian Mechanism for Differential Privacy*, ICML 2018, arXiv
    1805.06530, theorem 8: `δ(ε) = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ)`. T releases at Δ/σ each are
    one at `μ = √T Δ/σ` (Dong, Roth and Su, *Gaussian Differential Privacy*, JRSS-B 2022, arXiv
    1905.02383, corollary 2): the curve is exact, no bound.

    With `x = ε/μ − μ/2` and Mills' ratio `M(x) = Φ(−x)/φ(x)` the curve is
    `Φ(−x) · (1 − M(x + μ)/M(x))`, in which nothing overflows; its logarithm falls in x, and the
    root lies between `x = −μ/2`, where ε is 0, and `x = −Φ⁻¹(δ)`.

    Args:
        mu: μ, at least 0.
        delta: δ, in (0, 1).

    Returns:
        ε in nats: 0 where `δ(0) ≤ δ`, infinity where μ² overflows.

    Example:
        >>> round(gaussian_epsilon(1.0, 1e-5), 3)
        4.377
    """

    def excess(x: float) -> float:
        ratio = float(erfcx((x + mu) / math.sqrt(2)) / erfcx(x / math.sqrt(2)))
        return float(log_ndtr(-x)) + math.log(max(1 - ratio, _LEAST)) - math.log(delta)

    if not mu * mu < math.inf:
        return math.inf
    if excess(-mu / 2) <= 0:
        return 0.0
    before = max(-mu / 2, -40.0)  # where Φ(−x) is 1 in double precision
    beyond = 1 - float(ndtri(delta))  # past the root also where the ratio is lost to rounding
    return mu * (mu / 2 + float(brentq(excess, before, beyond, xtol=1e-14)))
