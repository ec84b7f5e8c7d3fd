"""The inputs whole: by every column of the first layer's gradients, and by its units' rows.

With the δ that examples leave, every column of the rounds' first gradients is a linear equation in
its pixel. What δ is depends on masks, and rough inputs set those wrong whose outputs lie near 0:
the same in round after round, as weights hardly move, so that no number of rounds averages it away.
But a unit's whole row of the gradient hangs on its mask,

    G_j = Σ_b m_jb a_jb x_b + noise,      m = 1, or the activation's slope below 0,

with a what comes down to the activation, and says by its likelihood which side the unit is on.
"""

from __future__ import annotations

import numpy as np

from attacks.rounds.problem import Rounds
from attacks.unrolled.simulation import Simulation, Unknowns
from attacks.victim.gradients import Array

MASK_TURNS = 4
"""How often inputs and masks are taken by one another."""
FLIPPED_SIGMAS = 3.0
"""By how many standard deviations of noise a row has to speak against a mask: a right one, whose
other side would change the row by e of them, is flipped with the probability `Φ(−(e² + 9) / (2 e))`
of at most `Φ(−3)`."""


def whole_inputs(
    rounds: Rounds, simulations: list[Simulation], client: Unknowns, factors: Array
) -> tuple[Array, Array]:
    """Return inputs (n, d) that fit all columns, and the standard deviation of their entries (n,).

    Args:
        rounds: of a client.
        simulations: of each.
        client: the examples in the span's coordinates, which say what comes down, and the masks
            at first.
        factors: what clipping left of each round.
    """
    passes = [next(iter(each.passes(client)))[0] for each in simulations]
    slopes = np.hstack([one.slopes[0].numpy() for one in passes])
    arriving = np.hstack(
        [
            factor / one.sigma * step.arriving[0].numpy()
            for factor, one, step in zip(factors, rounds.each, passes, strict=True)
        ]
    )
    rows = np.vstack([one.first / one.sigma for one in rounds.each])
    low = rounds.each[0].chain.activations[0].low or 0.0
    inputs, std = _least_squares(arriving * slopes, rows, has_bias=rounds.has_bias)
    for _ in range(MASK_TURNS):
        slopes = _flipped(arriving, slopes, rows, inputs, low)
        inputs, std = _least_squares(arriving * slopes, rows, has_bias=rounds.has_bias)
    return inputs, std


def _least_squares(down: Array, rows: Array, *, has_bias: bool) -> tuple[Array, Array]:
    """Return the inputs (n, d) behind δ (n, units) and rows (units, d), and standard deviations."""
    inverse = np.linalg.pinv(down @ down.T, hermitian=True)
    inputs = inverse @ (down @ rows)
    if has_bias:
        inputs = inputs / np.where(np.abs(inputs[:, -1:]) > 1e-3, inputs[:, -1:], 1.0)
    return inputs, np.sqrt(np.maximum(np.diag(inverse), 0.0))


def _flipped(arriving: Array, slopes: Array, rows: Array, inputs: Array, low: float) -> Array:
    """Return slopes (n, units) with the one of each unit on its other side that the row asks for.

    In units of noise: a flip changes the row by c x, and the sum of squares by `2 c x·r + c² ‖x‖²`.
    """
    rest = (arriving * slopes).T @ inputs - rows
    other = 1 + low - slopes
    change = arriving * (other - slopes)
    size = (inputs**2).sum(axis=1)[:, None]
    gain = -(2 * change * (inputs @ rest.T) + change**2 * size)
    asked = (gain > FLIPPED_SIGMAS**2) & (gain == gain.max(axis=0))
    return np.where(asked, other, slopes)
