"""The way forward and back of examples, with the masks that the gradients' rows speak for.

[ours] Rough inputs set those masks wrong whose outputs lie near 0: the same in round after round,
as weights hardly move, so that no number of rounds averages it away. But a unit's whole row of its
layer's gradient hangs on its mask,

    G_j = Σ_b m_jb a_jb x_b + noise,      m = 1, or the activation's slope below 0,

with a what comes down to the activation, and says by its likelihood which side the unit is on. And
the output of a unit on an example is off by some e in all rounds alike: masks are those of
`z_r + e` for the e of greatest likelihood, of which inputs that err by s take `e² / s²`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.numerics.softmax import softmax
from attacks.rounds.levels import variance_about
from attacks.rounds.problem import OneRound, Rounds
from attacks.victim.gradients import Array

LEAST_ERROR = 1e-12
"""Of inputs, relative."""
MASK_TURNS = 4
"""How often a layer's masks are gone through."""


@dataclass(frozen=True, eq=False)
class Side:
    """What says which side a layer's units are on, of R rounds.

    Args:
        z: outputs, (R, n, m).
        spread: by which they may be off, (n, m).
        arriving: what comes down, in units of the rows' noise, (R, n, m).
        rows: the layer's gradients, likewise, (R, m, d).
        low: the slope below 0.
    """

    z: Array
    spread: Array
    arriving: Array
    rows: Array
    low: float

    @property
    def slopes(self) -> Array:
        """By the outputs alone, (R, n, m)."""
        return np.where(self.z > 0, 1.0, self.low)

    def turned(self, slopes: Array, inputs: Array) -> Array:
        """Return slopes (R, n, m) with those of one example of each unit as its rows ask for.

        Args:
            slopes: as they are.
            inputs: of the layer, (R, n, d) or (n, d).
        """
        # A flip changes the row by c x, and the sum of squares by `2 c x·r + c² ‖x‖²`.
        rest = (self.arriving * slopes).swapaxes(1, 2) @ inputs - self.rows
        change = self.arriving * (1 + self.low - 2 * slopes)
        size = (inputs**2).sum(axis=-1)[..., None]
        gain = -(2 * change * (inputs @ rest.swapaxes(1, 2)) + change**2 * size)
        own = slopes == self.slopes
        best, score = self._best(np.where(own, gain, -gain))
        cost = np.where(own, 0.0, (self.z / self.spread) ** 2).max(axis=0)
        now = np.where(own, 0.0, -gain).sum(axis=0) - cost
        grown = score - now
        asked = (grown > 1e-9) & (grown == grown.max(axis=0))
        return np.where(asked, np.where(best, 1 + self.low - self.slopes, self.slopes), slopes)

    def _best(self, gain: Array) -> tuple[Array, Array]:
        """Return which rounds' masks the best e turns, (R, n, m), and what that gains, (n, m)."""
        best, score = np.zeros(gain.shape, dtype=bool), np.zeros(gain.shape[1:])
        for side in (self.z > 0, self.z <= 0):
            far = np.where(side, np.abs(self.z) / self.spread, np.inf)
            order = np.argsort(far, axis=0)
            distance = np.take_along_axis(far, order, axis=0)
            gains = np.where(side, gain, 0.0)
            total = np.cumsum(np.take_along_axis(gains, order, axis=0), axis=0) - distance**2
            last = total.argmax(axis=0)[None]
            most = np.take_along_axis(total, last, axis=0)[0]
            reach = np.take_along_axis(distance, last, axis=0)
            better = most > score
            best = np.where(better, side & (far <= reach), best)
            score = np.where(better, most, score)
        return best, score


@dataclass(frozen=True, eq=False)
class Ways:
    """The passes of R rounds.

    Args:
        values: each layer's inputs, with the bias's 1 behind them, (R, n, …); the first's, (n, d).
        downs: the loss's derivative by each layer's outputs, (R, n, …), over n.
        first: of the first layer's units.
        slopes: of each layer's activations, as they are taken, (R, n, …).
        sigma: standard deviation of the noise on the first layer's rows, (R, D).
    """

    values: list[Array]
    downs: list[Array]
    first: Side
    slopes: list[Array]
    sigma: Array


def ways_of(rounds: Rounds, inputs: Array, labels: Array, error: float, factors: Array) -> Ways:
    """Send examples forward and back in each round.

    Args:
        rounds: of a client.
        inputs: of the first layer, with the bias's 1, (n, d).
        labels: (n, K).
        error: of the inputs, relative.
        factors: what clipping left of each round.
    """
    values, outputs = _forward(rounds, inputs)
    chains = [one.chain for one in rounds.each]
    p = softmax(outputs[-1])
    downs = [np.asarray(factors)[:, None, None] * (p - labels) / len(inputs)]
    side, sigma, every = None, np.empty(0), list[Array]()
    for index in reversed(range(len(outputs) - 1)):
        layers = [chain.layers[index] for chain in chains]
        arriving = downs[0] @ np.stack([chain.layers[index + 1].weights for chain in chains])
        open_ = arriving.swapaxes(1, 2) @ values[index]
        sigma = np.stack(
            [_row_noise(one, index, part) for one, part in zip(rounds.each, open_, strict=True)]
        )
        z = outputs[index]
        size = np.sqrt(np.mean(z**2, axis=(0, 2)))[:, None]
        side = Side(
            z,
            np.maximum(error, LEAST_ERROR) * np.maximum(size, 1e-300) * np.ones(z.shape[1:]),
            arriving / sigma[:, None],
            np.stack([layer.gradient for layer in layers]) / sigma[..., None],
            chains[0].activations[index].low or 0.0,
        )
        slopes = side.slopes
        for _ in range(MASK_TURNS):
            slopes = side.turned(slopes, values[index])
        downs.insert(0, arriving * slopes)
        every.insert(0, slopes)
    assert side is not None
    return Ways(values, downs, side, every, sigma)


def _forward(rounds: Rounds, inputs: Array) -> tuple[list[Array], list[Array]]:
    """Return each layer's inputs and outputs."""
    values, outputs = [inputs], []
    for index in range(len(rounds.last.layers)):
        weights = np.stack([one.chain.layers[index].weight for one in rounds.each])
        z = values[-1] @ weights.swapaxes(1, 2)
        outputs.append(z)
        if index + 1 < len(rounds.last.layers):
            low = rounds.last.activations[index].low or 0.0
            a = np.where(z > 0, 1.0, low) * z
            ones = np.ones((*a.shape[:2], int(rounds.last.layers[index + 1].has_bias)))
            values.append(np.concatenate([a, ones], axis=2))
    return values, outputs


def _row_noise(one: OneRound, index: int, open_: Array) -> Array:
    """Return the standard deviation of noise on a layer's rows, (m,).

    Of entries that were rounded by what they are with all masks open (m, n), not by what came:
    rows that came out small would speak the louder for being small.
    """
    if not one.levels:
        return np.asarray(np.sqrt(np.mean(one.sigmas[index] ** 2, axis=1)) * np.ones(len(open_)))
    return np.asarray(np.sqrt(variance_about(one.levels[index], open_).mean(axis=1)) + 1e-300)
