"""The examples of greatest likelihood: every round predicted at its own weights.

With `g_r(α, y)` the gradient that examples leave in round r, and c_r what clipping makes of it,

    r_r = (c_r g_r(α, y) − G_r) / σ_r,      c_r = min(1, C / ‖g_r‖),

or, where nobody tells, the c_r that fits best. Damped Gauss-Newton steps (Levenberg, Marquardt) in
the coordinates α of the span and in the labels, with the weights `1 / (1 + (r/s)²)` of a robust fit
that noise alone hardly touches, s = 3: masks that change on the way are no noise.

The images are fitted outside of the span, too (`whole`), and span the next one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from attacks.rounds.problem import Rounds
from attacks.rounds.whole import whole_inputs
from attacks.unrolled.models import bias_at_one, of_each
from attacks.unrolled.refine import (
    FIRST_DAMPING,
    LEAST_DAMPING,
    MOST_DAMPING,
    chosen,
    columns_taken,
    merit_of,
)
from attacks.unrolled.schedule import of_sum_zero
from attacks.unrolled.simulation import Simulation, Unknowns, Weights
from attacks.unrolled.tangents import Directions, moves_and_tangents
from attacks.victim.gradients import Array

ROBUST_SIGMAS = 3.0
"""s, in standard deviations of noise."""
MOST_COLUMNS_TAKEN = 8
"""Columns of a layer between the first and the last whose equations are taken, at most."""
STEPS_AT_FIRST, FINE_STEPS = 20, 4
"""Steps in the first span, at most, and in those that follow."""
LEAST_FALL_SIGMAS = 0.1
"""Fall of the merit below which a step counts as the last, in its standard deviation by noise."""
SPANS = 1
"""How often the span is taken anew from the images."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """Where the steps ended.

    Args:
        inputs: of the first layer, (n, d), with the bias's 1 behind them.
        labels: (n, K).
        input_std: standard deviation of the error of an input's entries, root mean square, (n,).
        label_std: of the labels' entries, (n, K); 0 where they are told.
        misfit: how far the sum of squares is above that of noise, in units of what noise and wrong
            masks make it vary by.
    """

    inputs: Array
    labels: Array
    input_std: Array
    label_std: Array
    misfit: float


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The rounds' equations in the span's coordinates, in units of noise.

    Args:
        rounds: all.
        simulations: of each.
        sent: what each sent, flat.
    """

    rounds: Rounds
    simulations: list[Simulation]
    sent: list[Tensor]

    @classmethod
    def of(cls, rounds: Rounds) -> Likelihood:
        """Put the rounds in coordinates."""
        each = enumerate(rounds.each)
        sent = [_flat(rounds.gradients(i)) / one.sigma for i, one in each]
        return cls(rounds, rounds.simulations(), sent)

    @property
    def size(self) -> int:
        """Equations."""
        return sum(len(part) for part in self.sent)

    def rest(self, client: Unknowns) -> list[Tensor]:
        """Return each round's residuals."""
        return [self._rest(i, client)[0] for i in range(len(self.sent))]

    def factors(self, client: Unknowns) -> Array:
        """Return c of each round."""
        return np.array([self._rest(i, client)[1] for i in range(len(self.sent))])

    def normal(
        self, client: Unknowns, directions: Directions
    ) -> tuple[Tensor, Tensor, float, float]:
        """Return the normal equations (P, P) and (P,), the merit, and the sum of squares."""
        count = directions.inputs.shape[2]
        matrix = torch.zeros(count, count, dtype=torch.float64)
        vector, merit, squares = torch.zeros(count, dtype=torch.float64), 0.0, 0.0
        fine = directions.to(torch.float32)
        for i, simulation in enumerate(self.simulations):
            rest, factor, predicted = self._rest(i, client)
            columns = columns_taken(simulation.weights, MOST_COLUMNS_TAKEN)
            _, tangents = moves_and_tangents(simulation, client, fine, columns)
            slope = torch.cat([part.flatten(0, 1) for part in tangents])
            slope = slope.mul_(factor / self.rounds.each[i].sigma)
            if self.rounds.is_scaled or factor < 1:  # c falls as g grows
                unit = (predicted / predicted.norm()).float()
                slope = slope - torch.outer(unit, unit @ slope)
            weight = 1 / (1 + (rest / ROBUST_SIGMAS) ** 2)
            weighted = slope * weight.sqrt().float()[:, None]
            matrix += (weighted.T @ weighted).double()
            vector += (slope.T @ (weight * rest).float()).double()
            merit += merit_of(rest, ROBUST_SIGMAS)
            squares += float(rest.square().sum())
        return matrix, vector, merit, squares

    def _rest(self, index: int, client: Unknowns) -> tuple[Tensor, float, Tensor]:
        """Return residuals, c, and what is predicted without it."""
        one = self.rounds.each[index]
        moves = self.simulations[index].moves(client)
        predicted, sent = _flat(moves) / one.sigma, self.sent[index]
        factor = 1.0
        if one.norm is not None:
            norm = float(torch.stack([part.square().sum() for part in moves]).sum().sqrt())
            factor = min(1.0, one.norm / max(norm, 1e-300))
        elif self.rounds.is_scaled:
            factor = float(predicted @ sent) / max(float(predicted @ predicted), 1e-300)
            factor = max(factor, 1e-9)
        return factor * predicted - sent, factor, predicted


def _flat(parts: Weights) -> Tensor:
    some = chosen(parts, columns_taken(parts, MOST_COLUMNS_TAKEN))
    return torch.cat([part.flatten() for part in some])


def fit(rounds: Rounds, start: Unknowns, *, label_ways: Tensor) -> Fitted:
    """Refine a start.

    Args:
        rounds: of a client.
        start: to begin with.
        label_ways: directions (n, K, P) of labels; none where they are told.
    """
    client = start
    for turn in range(SPANS + 1):
        every = Likelihood.of(rounds)
        most = FINE_STEPS if turn else STEPS_AT_FIRST
        client, spread, squares = _steps(every, client, label_ways, most)
        factors = every.factors(client)
        inputs, std = whole_inputs(rounds, every.simulations, client, factors)
        if turn < SPANS:
            rounds = rounds.spanned_by(inputs)
            client = dataclasses.replace(client, inputs=torch.from_numpy(inputs @ rounds.span.T))
    freedom = every.size - spread.inputs.numel() - int((spread.labels > 0).sum())
    excess = max(squares / freedom, 1.0) ** 0.5  # what masks do that are still wrong
    width = inputs.shape[1]
    within = spread.inputs.square().sum(dim=1).numpy()
    input_std = excess * np.sqrt((std**2 * (width - rounds.examples) + within) / width)
    expected = _of_wrong_masks(rounds, every, client, factors, input_std)
    misfit = (squares - freedom) / (expected + (2 * freedom) ** 0.5)
    return Fitted(inputs, client.labels.numpy(), input_std, excess * spread.labels.numpy(), misfit)


def _of_wrong_masks(
    rounds: Rounds, likelihood: Likelihood, client: Unknowns, factors: Array, input_std: Array
) -> float:
    """Return the sum of squares that wrong masks are expected to leave, by the inputs' errors.

    A unit whose output is z on an input that errs by s turns the other way with the probability
    `Φ(−|z| / (s ‖w‖))`, and then a whole row of the gradient is off.
    """
    total = 0.0
    for one, simulation, factor in zip(rounds.each, likelihood.simulations, factors, strict=True):
        step, _ = next(iter(simulation.passes(client)))
        z = (client.inputs @ simulation.weights[0].T).numpy()
        sizes = np.linalg.norm(one.chain.layers[0].weight, axis=1)
        chance = ndtr(-np.abs(z) / np.maximum(input_std[:, None] * sizes, 1e-300))
        rows = (factor * step.arriving[0].numpy() / one.sigma) ** 2
        total += float((chance * rows * client.inputs.square().sum(dim=1).numpy()[:, None]).sum())
    return total


def _steps(
    likelihood: Likelihood, client: Unknowns, label_ways: Tensor, most: int
) -> tuple[Unknowns, Unknowns, float]:
    """Take damped steps; return where they end, standard deviations, and the sum of squares."""
    rounds = likelihood.rounds
    client, directions = _free(rounds, client, label_ways)
    damping = FIRST_DAMPING
    matrix, vector, before, squares = likelihood.normal(client, directions)
    for _ in range(most):
        while True:
            diagonal = matrix.diagonal()
            damped = matrix + torch.diag(damping * diagonal + 1e-12 * diagonal.max() + 1e-300)
            step = torch.linalg.solve(damped, vector)
            moved = client.moved(directions.along(-step))
            now = sum(merit_of(rest, ROBUST_SIGMAS) for rest in likelihood.rest(moved))
            if now < before or damping > MOST_DAMPING:
                break
            damping = max(damping, LEAST_DAMPING) * 8
        if not now < before:
            break
        client, damping = moved, max(damping / 8, LEAST_DAMPING)
        is_last = now > before - LEAST_FALL_SIGMAS * (2 * likelihood.size) ** 0.5
        matrix, vector, before, squares = likelihood.normal(client, directions)
        if is_last:
            break
    size = matrix.diagonal().clamp(min=1e-300).sqrt()
    values, ways = torch.linalg.eigh(matrix / size / size[:, None])
    root = ways / values.clamp(min=1e-7).sqrt() / size[:, None]
    of_inputs, of_labels = (part @ root for part in (directions.inputs, directions.labels))
    spread = Unknowns(of_inputs.norm(dim=2), of_labels.norm(dim=2), client.shares * 0)
    return client, spread, squares


def _free(rounds: Rounds, client: Unknowns, label_ways: Tensor) -> tuple[Unknowns, Directions]:
    """Return the unknowns with the bias's input at 1, and the directions that leave it there."""
    count, size = client.inputs.shape
    inputs, frame = bias_at_one(client.inputs, rounds.span if rounds.has_bias else None)
    own = of_each([frame] * count)
    free, more = own.shape[2], label_ways.shape[2]
    nothing = own.new_zeros
    directions = Directions(
        torch.cat([own, nothing(count, size, more)], dim=2),
        torch.cat([nothing(count, label_ways.shape[1], free), label_ways], dim=2),
        nothing(1, count, free + more),
    )
    return dataclasses.replace(client, inputs=inputs), directions


def free_labels(count: int, classes: int) -> Tensor:
    """Return directions (n, K, n (K − 1)) of labels that sum to 1."""
    return of_each([of_sum_zero(classes)] * count)
