"""What examples leave of the rounds' gradients, beside what noise leaves.

Of each layer, all rounds together, the sum of squares S of what the gradients have beyond the
prediction, its expectation E by the noise alone and its variance V: for normal noise N σ² and
2 N σ⁴, and for entries that were rounded to levels the sums of

    Δ² f (1 − f)      and      Δ⁴ f (1 − f) (1 − 2 f)².

Every pixel that was fitted takes its share of the first layer's noise away; and inputs that err by
s, relative, miss the layers above by `Σ_b ‖δ_b‖² ‖a_b‖² s²`, of which a limited range of pixels
takes some away again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.rounds.levels import variance_at
from attacks.rounds.masks import ways_of
from attacks.rounds.problem import OneRound, Rounds
from attacks.victim.gradients import Array

NOISE_SLACK = 5e-3
"""What noise is off from what is taken for it, in its standard deviation: masks that neither rows
nor outputs tell, and levels that are predicted from inputs that err."""


@dataclass(frozen=True, eq=False)
class Rest:
    """What is left.

    Args:
        misfit: of the layer that is off most, `S − E` in its standard deviations.
        excess: root of `S / E` of the layer where that is the most, at least 1.
    """

    misfit: float
    excess: float


def rest_of(rounds: Rounds, inputs: Array, labels: Array, error: float, factors: Array) -> Rest:
    """Return what examples leave.

    Args:
        rounds: of a client.
        inputs: of the first layer, with the bias's 1, (n, d).
        labels: (n, K).
        error: of the inputs, relative.
        factors: what clipping left of each round.
    """
    sums = np.zeros((len(rounds.last.layers), 4))
    ways = ways_of(rounds, inputs, labels, error, factors)
    for index, (downs, values) in enumerate(zip(ways.downs, ways.values, strict=True)):
        predicted = downs.swapaxes(1, 2) @ values
        strength = ((downs**2).sum(axis=2) * (values**2).sum(axis=-1)).sum(axis=1)
        for one, part, size in zip(rounds.each, predicted, strength, strict=True):
            sums[index, :3] += _sums(one, index, part)
            sums[index, 3] += error**2 * size / np.mean(one.sigmas[index] ** 2)
    rows = sum(one.rows for one in rounds.each)
    left, noise, variance, missed = sums.T
    noise[0] *= max(1 - rounds.examples / rows, 0.0)
    expected = noise + missed
    misfit = (left - expected) / np.sqrt(variance + (NOISE_SLACK * noise) ** 2)
    return Rest(float(misfit.max()), float(np.sqrt(max((left / expected).max(), 1.0))))


def _sums(one: OneRound, index: int, predicted: Array) -> Array:
    """Return S, E and V of a layer, in units of its mean variance."""
    sent, sigma = one.chain.layers[index].gradient, one.sigmas[index]
    mean = float(np.mean(sigma**2))
    left = float(((sent - predicted) ** 2).sum()) / mean
    if not one.levels:
        return np.array([left, sent.size, 2 * sent.size])
    Δ = np.broadcast_to(one.levels[index], sent.shape)
    noise = variance_at(Δ, predicted)
    # (1 − 2 f)² = 1 − 4 f (1 − f)
    fourth = noise * (Δ**2 - 4 * noise) / mean**2
    return np.array([left, float(noise.sum()) / mean, float(fourth.sum())])
