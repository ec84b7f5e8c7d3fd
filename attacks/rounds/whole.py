"""The inputs whole: by every column of the first layer's gradients, and masks by every row.

With the δ that examples leave, every column of the rounds' first gradients is a linear equation in
its pixel (`columns`), and what δ is depends on masks (`masks`): each is taken by the other in turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.rounds.columns import by_columns
from attacks.rounds.levels import variance_at, variance_before
from attacks.rounds.masks import ways_of
from attacks.rounds.problem import Rounds
from attacks.victim.gradients import Array

WHOLE_TURNS, COLUMN_TURNS = 4, 3
"""How often examples are sent forward and back anew, and columns and masks taken by one another."""
SETTLED_ERRORS = 0.05
"""Change of the inputs, in their error, below which they stay as they are."""
LEAST_OF_BEFORE = 0.3
"""Variance of an entry that was rounded, in that of its row and column, at least: what is predicted
of it errs as well."""


@dataclass(frozen=True, eq=False)
class Whole:
    """Inputs by all columns.

    Args:
        inputs: within their range, with the bias's 1, (n, d).
        free: as least squares have them.
        std: standard deviations of the latter's entries, (n,).
    """

    inputs: Array
    free: Array
    std: Array

    @property
    def error(self) -> float:
        """Of the inputs, relative."""
        size = float(np.sqrt(np.mean(self.inputs**2)))
        return float(np.sqrt(np.mean(self.std**2))) / max(size, 1e-300)


def whole_inputs(
    rounds: Rounds, inputs: Array, labels: Array, error: float, factors: Array
) -> Whole:
    """Return inputs that fit all columns.

    Args:
        rounds: of a client.
        inputs: to begin with, with the bias's 1, (n, d).
        labels: (n, K).
        error: of these inputs, relative.
        factors: what clipping left of each round.
    """
    gradients = np.stack([one.first for one in rounds.each])
    for _ in range(WHOLE_TURNS):
        ways = ways_of(rounds, inputs, labels, error, factors)
        side, slopes = ways.first, ways.slopes[0]
        rows = np.concatenate(gradients / ways.sigma[..., None])
        before = inputs
        precision = _precision(rounds, ways.sigma, _stacked(side.arriving * slopes).T @ inputs)
        for _ in range(COLUMN_TURNS):
            down = _stacked(side.arriving * slopes)
            free, inputs, std = by_columns(
                down, rows, precision, rounds.box, has_bias=rounds.has_bias
            )
            found = Whole(inputs, free, std)
            slopes, error = side.turned(slopes, inputs), found.error
        if np.linalg.norm(inputs - before) <= SETTLED_ERRORS * error * np.linalg.norm(inputs):
            break
    return found


def _stacked(rounds: Array) -> Array:
    """Return what is of R rounds, (R, n, D), side by side, (n, R · D)."""
    return np.asarray(rounds.swapaxes(0, 1).reshape(rounds.shape[1], -1))


def _precision(rounds: Rounds, sigma: Array, predicted: Array) -> Array | None:
    """Return what entries are worth, relative to their rows', (N, d), where they were rounded."""
    if not all(one.levels for one in rounds.each):
        return None
    Δ = np.vstack([np.broadcast_to(one.levels[0], one.first.shape) for one in rounds.each])
    row = sigma.reshape(-1, 1)
    v = predicted * row
    variance = np.maximum(variance_at(Δ, v), LEAST_OF_BEFORE * variance_before(Δ, v))
    return np.asarray(row**2 / np.maximum(variance, 1e-300))
