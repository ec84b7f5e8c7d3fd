"""The privacy that clipping and noise give a client against the server: local (ε, δ)."""

from __future__ import annotations

import math
import warnings

import numpy as np

from fl_sim.errors import UserError

_ORDERS = 1 + np.geomspace(1e-3, 1e4, 500)
"""Rényi orders α to choose from; every one gives a valid bound, a fine grid a tight one."""


def epsilon(noise_multiplier: float, rounds: int, *, delta: float = 1e-5) -> float | None:
    """Return the ε of one client that sends clipped, noisy updates: local differential privacy.

    The adversary is the server, which reads every update of the client. Neighbours are ANY two
    data sets of that client: two clipped updates, each of norm at most C, differ by at most 2C. So
    noise of standard deviation z·C is a Gaussian mechanism of multiplier z/2, with Rényi
    divergence `α / (2 (z/2)²) = 2α/z²` (Mironov, *Rényi Differential Privacy*, CSF 2017, arXiv
    1702.07476, corollary 3), which adds up over rounds, also when later updates depend on earlier
    ones (proposition 1). The server sees who takes part, so the sampling rate is 1: nothing is
    amplified. Opacus's RDP accountant adds up and converts to (ε, δ) (Balle et al., AISTATS 2020,
    arXiv 1905.09982, theorem 21).

    Args:
        noise_multiplier: z, the noise's standard deviation over the clipping norm C, at least 0.
        rounds: rounds in which the client sent an update, at least 0.
        delta: δ, in (0, 1).

    Returns:
        ε in nats, an upper bound, at least 0; 0 after no round. None where no finite ε holds:
        without noise.

    Raises:
        UserError: an argument is out of its range.

    Example:
        >>> round(epsilon(10.0, 1), 3)
        0.794

    Note:
        The bound holds for noise of real numbers; floating-point noise leaks a little more.
    """
    if not 0 <= noise_multiplier < math.inf:
        raise UserError(
            f"noise_multiplier must be a finite number of at least 0, found {noise_multiplier}"
        )
    if rounds < 0:
        raise UserError(f"rounds must be at least 0, found {rounds}")
    if not 0 < delta < 1:
        raise UserError(f"delta must be above 0 and below 1, found {delta}")
    if rounds == 0:
        return 0.0
    if noise_multiplier == 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on import; and on orders at the grid's end, still valid
        from opacus.accountants import RDPAccountant  # takes seconds

        accountant = RDPAccountant()
        accountant.history.append((noise_multiplier / 2, 1.0, rounds))
        bound = float(accountant.get_epsilon(delta, alphas=list(_ORDERS)))
    return max(bound, 0.0) if math.isfinite(bound) else None
