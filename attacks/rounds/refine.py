"""The examples of greatest likelihood: every round predicted at its own weights.

With `g_r(α, y)` the gradient that examples leave in round r, and c_r what clipping makes of it,

    r_r = (c_r g_r(α, y) − G_r) / σ_r,      c_r = min(1, C / ‖g_r‖),

or, where nobody tells, the c_r that fits best. Damped Gauss-Newton steps (Levenberg, Marquardt) in
the coordinates α of the span and in the labels, with the weights `1 / (1 + (r/s)²)` of a robust fit
that noise alone hardly touches, s = 3: masks that change on the way are no noise.

The images are fitted outside of the span, too (`whole`), and span the next one, in which masks are
those that the gradients' rows speak for (`masks`): by outputs alone the same ones are wrong in
round after round, and with them what labels and scales are drawn to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attacks.rounds.masks import ways_of
from attacks.rounds.problem import Rounds
from attacks.rounds.rest import rest_of
from attacks.rounds.whole import whole_inputs
from attacks.types import NotApplicable
from attacks.unrolled.models import bias_at_one, of_each
from attacks.unrolled.refine import (
    FIRST_DAMPING,
    LEAST_DAMPING,
    MOST_DAMPING,
    chosen,
    columns_taken,
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
MOST_ERROR_OF_INPUTS = 0.35
"""Error of an example's inputs, relative, at which it is believed to be one, and its masks to be
those that the gradients' rows speak for, at most."""
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
        misfit: see `attacks.rounds.rest`.
        excess: likewise.
        errors: of each example's inputs by noise alone, relative, (n,).
    """

    inputs: Array
    labels: Array
    input_std: Array
    label_std: Array
    misfit: float
    excess: float
    errors: Array


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The rounds' equations in the span's coordinates, in units of noise.

    Args:
        rounds: all.
        simulations: of each.
        sent: what each sent, flat.
        sigmas: standard deviations of the noise on it.
        reach: s, up to which noise alone goes: of rounding, as far as a level.
    """

    rounds: Rounds
    simulations: list[Simulation]
    sent: list[Tensor]
    sigmas: list[Tensor]
    reach: list[Tensor]

    @classmethod
    def of(cls, rounds: Rounds, masks: Sequence[Array] = ()) -> Likelihood:
        """Put the rounds in coordinates.

        Args:
            rounds: of a client.
            masks: of each layer's activations, the slopes (R, n, m) that its gradients speak for;
                none: outputs tell.
        """
        parts = [rounds.gradients(i) for i in range(len(rounds.each))]
        sigmas = [_flat(_like(p, one.sigmas)) for p, one in zip(parts, rounds.each, strict=True)]
        sent = [_flat(part) / sigma for part, sigma in zip(parts, sigmas, strict=True)]
        reach = [torch.full_like(sigma, ROBUST_SIGMAS) for sigma in sigmas]
        for i, one in enumerate(rounds.each):
            if one.levels:
                steps = (np.zeros((1, 1)), *one.levels[1:])
                reach[i] = torch.maximum(reach[i], _flat(_like(parts[i], steps)) / sigmas[i])
        simulations = rounds.simulations()
        if masks:
            simulations = [
                dataclasses.replace(one, masks=tuple(torch.from_numpy(own[i]) for own in masks))
                for i, one in enumerate(simulations)
            ]
        return cls(rounds, simulations, sent, sigmas, reach)

    @property
    def size(self) -> int:
        """Equations."""
        return sum(len(part) for part in self.sent)

    def rest(self, client: Unknowns) -> list[Tensor]:
        """Return each round's residuals."""
        return [self._rest(i, client)[0] for i in range(len(self.sent))]

    def squares(self, client: Unknowns) -> float:
        """Return the sum of squares."""
        return sum(float(rest.square().sum()) for rest in self.rest(client))

    def merit(self, client: Unknowns) -> float:
        """Return the sum of all rounds' robust residuals."""
        return sum(self._merit(i, rest) for i, rest in enumerate(self.rest(client)))

    def _merit(self, index: int, rest: Tensor) -> float:
        size = self.reach[index]
        value = float((size**2 * torch.log1p((rest / size) ** 2)).sum())
        return value if value == value else float("inf")

    def factors(self, client: Unknowns) -> Array:
        """Return c of each round."""
        return np.array([self._rest(i, client)[1] for i in range(len(self.sent))])

    def normal(self, client: Unknowns, directions: Directions) -> tuple[Tensor, Tensor, float]:
        """Return the normal equations (P, P) and (P,), and the merit."""
        count = directions.inputs.shape[2]
        matrix = torch.zeros(count, count, dtype=torch.float64)
        vector, merit = torch.zeros(count, dtype=torch.float64), 0.0
        fine = directions.to(torch.float32)
        for i, simulation in enumerate(self.simulations):
            rest, factor, predicted = self._rest(i, client)
            columns = columns_taken(simulation.weights, MOST_COLUMNS_TAKEN)
            _, tangents = moves_and_tangents(simulation, client, fine, columns)
            slope = torch.cat([part.flatten(0, 1) for part in tangents])
            slope = slope.mul_((factor / self.sigmas[i]).float()[:, None])
            if self.rounds.is_scaled or factor < 1:  # c falls as g grows
                unit = (predicted / predicted.norm()).float()
                slope = slope - torch.outer(unit, unit @ slope)
            weight = 1 / (1 + (rest / self.reach[i]) ** 2)
            weighted = slope * weight.sqrt().float()[:, None]
            matrix += (weighted.T @ weighted).double()
            vector += (slope.T @ (weight * rest).float()).double()
            merit += self._merit(i, rest)
        return matrix, vector, merit

    def _rest(self, index: int, client: Unknowns) -> tuple[Tensor, float, Tensor]:
        """Return residuals, c, and what is predicted without it."""
        one = self.rounds.each[index]
        moves = self.simulations[index].moves(client)
        predicted, sent = _flat(moves) / self.sigmas[index], self.sent[index]
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


def _like(parts: Weights, rows: tuple[Array, ...]) -> Weights:
    """Return arrays in the shapes of tensors."""
    pairs = zip(parts, rows, strict=True)
    return tuple(torch.from_numpy(np.array(np.broadcast_to(r, p.shape))) for p, r in pairs)


def fit(rounds: Rounds, start: Unknowns, *, label_ways: Tensor) -> Fitted:
    """Refine a start.

    Args:
        rounds: of a client.
        start: to begin with.
        label_ways: directions (n, K, P) of labels; none where they are told.
    """
    client, masks = start, list[Array]()
    for turn in range(SPANS + 1):
        every = Likelihood.of(rounds, masks)
        most = FINE_STEPS if turn else STEPS_AT_FIRST
        client, spread = _steps(every, client, label_ways, most)
        factors = every.factors(client)
        error = float(spread.inputs.norm() / client.inputs.norm())
        inputs = client.inputs.numpy() @ rounds.span
        labels = client.labels.numpy()
        whole = whole_inputs(rounds, inputs, labels, error, factors)
        inputs, std = whole.inputs, whole.std
        if turn < SPANS:
            if whole.error <= MOST_ERROR_OF_INPUTS:
                masks = ways_of(rounds, inputs, labels, whole.error, factors).slopes
            rounds = rounds.spanned_by(inputs)
            client = dataclasses.replace(client, inputs=torch.from_numpy(inputs @ rounds.span.T))
    rest = min(
        (rest_of(rounds, part, labels, whole.error, factors) for part in (inputs, whole.free)),
        key=lambda one: one.misfit,
    )
    input_std, label_std = rest.excess * std, spread.labels.numpy()
    if label_ways.shape[2]:  # labels, and scales with them, err as masks of the span do
        doubt = max(every.squares(client) / every.size, 1.0) ** 0.5
        width = inputs.shape[1]
        within = spread.inputs.square().sum(dim=1).numpy() / width
        input_std, label_std = np.hypot(input_std, doubt * np.sqrt(within)), doubt * label_std
    return Fitted(
        inputs,
        labels,
        input_std,
        label_std,
        rest.misfit,
        rest.excess,
        std / np.sqrt(np.mean(whole.free**2, axis=1)),
    )


def _steps(
    likelihood: Likelihood, client: Unknowns, label_ways: Tensor, most: int
) -> tuple[Unknowns, Unknowns]:
    """Take damped steps; return where they end, and standard deviations."""
    rounds = likelihood.rounds
    client, directions = with_free_labels(rounds, client, label_ways)
    if directions.inputs.shape[2] == 0:  # one input beside a bias's spans itself alone
        return client, Unknowns(
            *(0 * part for part in (client.inputs, client.labels, client.shares))
        )
    damping = FIRST_DAMPING
    matrix, vector, before = likelihood.normal(client, directions)
    for _ in range(most):
        while True:
            diagonal = matrix.diagonal()
            damped = matrix + torch.diag(damping * diagonal + 1e-12 * diagonal.max() + 1e-300)
            step = torch.linalg.solve(damped, vector)
            moved = client.moved(directions.along(-step))
            now = likelihood.merit(moved)
            if now < before or damping > MOST_DAMPING:
                break
            damping = max(damping, LEAST_DAMPING) * 8
        if not now < before:
            break
        client, damping = moved, max(damping / 8, LEAST_DAMPING)
        is_last = now > before - LEAST_FALL_SIGMAS * (2 * likelihood.size) ** 0.5
        matrix, vector, before = likelihood.normal(client, directions)
        if is_last:
            break
    require_finite(matrix)
    size = matrix.diagonal().clamp(min=1e-300).sqrt()
    values, ways = torch.linalg.eigh(matrix / size / size[:, None])
    root = ways / values.clamp(min=1e-7).sqrt() / size[:, None]
    of_inputs, of_labels = (part @ root for part in (directions.inputs, directions.labels))
    spread = Unknowns(of_inputs.norm(dim=2), of_labels.norm(dim=2), client.shares * 0)
    return client, spread


def require_finite(matrix: Tensor) -> None:
    """Refuse normal equations that aren't.

    Raises:
        NotApplicable: they aren't finite.
    """
    if not bool(matrix.isfinite().all()):
        raise NotApplicable("the steps towards the examples went astray")


def with_free_labels(
    rounds: Rounds, client: Unknowns, label_ways: Tensor
) -> tuple[Unknowns, Directions]:
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
