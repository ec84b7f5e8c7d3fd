"""From a claim and a number of rounds to ε."""

from __future__ import annotations

import math

from defenses.privacy import Privacy
from fl_sim.errors import UserError
from fl_sim.privacy.gaussian import gaussian_epsilon
from fl_sim.privacy.sampled import sampled_epsilon


def epsilon(noise_multiplier: float, rounds: int, *, delta: float = 1e-5) -> float | None:
    """Return the ε of one client that sends updates clipped to C, under noise of deviation z·C.

    Neighbours are ANY two data sets of that client: two updates, each of norm at most C, differ by
    at most 2C. The server sees who takes part, so the rate is 1: nothing is amplified.

    Args:
        noise_multiplier: z, the noise's standard deviation over the clipping norm C, at least 0.
        rounds: rounds in which the client sent an update, at least 0.
        delta: δ, in (0, 1).

    Returns:
        ε in nats, as `spent_epsilon` gives it.

    Raises:
        UserError: an argument is out of its range.

    Example:
        >>> round(epsilon(10.0, 1), 3)
        0.726
    """
    if not 0 <= noise_multiplier < math.inf:
        raise UserError(
            f"noise_multiplier must be a finite number of at least 0, found {noise_multiplier}"
        )
    return spent_epsilon(Privacy(sensitivity=2.0, noise=noise_multiplier), rounds, delta=delta)


def spent_epsilon(claim: Privacy, rounds: int, *, delta: float = 1e-5) -> float | None:
    """Return the ε that a claim comes to over rounds.

    Exact where the rate is 1: T releases at Δ/σ are one Gaussian mechanism at `μ = √T Δ/σ`. Below,
    an upper bound, by convolving the privacy loss.

    Args:
        claim: of a round.
        rounds: in which the client took part, at least 0.
        delta: δ, in (0, 1).

    Returns:
        ε in nats, at least 0: 0 after no round, or where δ alone covers what is told. None where
        no finite ε holds: without noise.

    Raises:
        UserError: an argument is out of its range.

    Example:
        >>> step = Privacy(1.0, noise=1.0, sampling=0.01, unit="example", releases=10)
        >>> round(spent_epsilon(step, 100), 2)
        1.83

    Note:
        It holds for noise of real numbers; floating-point noise leaks a little more.
    """
    if rounds < 0:
        raise UserError(f"rounds must be at least 0, found {rounds}")
    if not 0 < delta < 1:
        raise UserError(f"delta must be above 0 and below 1, found {delta}")
    releases = rounds * claim.releases
    if releases == 0 or claim.sampling == 0:
        return 0.0
    noise = claim.noise / claim.sensitivity
    if noise == 0:
        return None
    if claim.sampling == 1:
        bound = gaussian_epsilon(math.sqrt(releases) / noise, delta)
    else:
        bound = sampled_epsilon(noise, claim.sampling, releases, delta)
    return bound if math.isfinite(bound) else None
