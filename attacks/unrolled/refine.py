"""Robust Gauss-Newton through the simulated training: what examples leave exactly this update.

Residuals are `moves(α, y) − D`, each layer's in units of its rounding. A unit whose mask is wrong
in some step misses by orders of magnitude more than others, so each entry has the weight
`1 / (1 + (r / s)²)`, s = 1.5 · median |r|, and the merit is `Σ s² log(1 + (r / s)²)`; steps are
damped (Levenberg, Marquardt). Least squares would stall at such units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from attacks.unrolled.pairs import ROBUST_SCALE
from attacks.unrolled.problem import Update
from attacks.unrolled.simulation import Simulation, Unknowns, Weights
from attacks.unrolled.tangents import Directions, moves_and_tangents

MOST_REFINING = 40
MOST_COLUMNS = 32
"""Of a layer between the first and the last, whose equations are taken."""
MOST_EFFORT = 1e11
"""Some 20 seconds' on one core; what is found takes 1e9 to 6e10."""
A_STEP = 4e7
"""What simulating a step takes, however small it is."""
TANGENTS, TANGENTS_NOISE = torch.float32, 1e-12
"""What derivatives are computed in, and what their rounding does to eigenvalues of the normal
equations, relative to the diagonal: below it nothing is told."""
LEAST_TOLD = 2e-16
"""Eigenvalue in place of those: less would spill over into what is told, by rounding."""
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-3, 1e-12, 1e4
"""Added to the normal equations, relative to their diagonal."""
LEAST_FALL = 1e-3
"""Relative fall of the merit below which a step counts as the last, twice in a row."""


@dataclass(frozen=True, eq=False)
class Model:
    """Which unknowns are free: all depend on the parameters as an affine map.

    Args:
        start: to refine.
        directions: of the parameters.
    """

    start: Unknowns
    directions: Directions


@dataclass(frozen=True, eq=False)
class Refined:
    """Where the steps ended.

    Args:
        client: the unknowns.
        residuals: in units of rounding, live units', (M,).
        spread: of the unknowns, standard deviations in units of rounding's.
        size: root mean square of what is to be met, in the residuals' units.
    """

    client: Unknowns
    residuals: Tensor
    spread: Unknowns
    size: float

    @property
    def misfit(self) -> float:
        """Of the whole update, relative, root mean square."""
        share = float(self.residuals.square().mean().sqrt()) / self.size
        return share if share < math.inf else math.inf

    @property
    def typical(self) -> float:
        """The median absolute residual; infinite where a step went astray."""
        size = float(self.residuals.abs().median())
        return size if size < math.inf else math.inf

    @property
    def noise(self) -> float:
        """What the residuals are taken to be in units of rounding: `typical`, at least 1."""
        return max(self.typical, 1.0)


class System(Protocol):
    """Residuals in units of rounding, and their derivatives."""

    @property
    def size(self) -> float:
        """Root mean square of what is to be met, in units of rounding."""

    def residuals(self, client: Unknowns) -> Tensor:
        """Return the residuals (M,)."""

    def linearised(self, model: Model, client: Unknowns) -> tuple[Tensor, Tensor]:
        """Return the residuals (M,) and their derivatives (M, P)."""

    def cost(self, model: Model) -> float:
        """Return about how many multiplications `linearised` and a step take."""


@dataclass(frozen=True, eq=False)
class Equations:
    """The residuals of live units, and their derivatives.

    Of a layer between the first and the last they are those of a few columns, which say as much
    as all.

    Args:
        simulation: of these units.
        moves: what is to be met, of these columns.
        rounding: of the layers.
        columns: of each layer; None for all.
    """

    simulation: Simulation
    moves: Weights
    rounding: tuple[float, ...]
    columns: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, update: Update) -> Equations:
        """Leave units out that no step moves."""
        moves = list(update.moves)
        live = [move.any(dim=1).nonzero()[:, 0] for move in moves[:-1]]
        for index, units in enumerate(live):
            moves[index] = moves[index][units]
            above, columns = moves[index + 1], units
            if update.simulation.biases[index + 1]:
                columns = torch.cat([units, torch.tensor([above.shape[1] - 1])])
            moves[index + 1] = above[:, columns]
        kept = columns_taken(moves, MOST_COLUMNS)
        simulation = update.simulation.only(live)
        return cls(simulation, chosen(moves, kept), update.rounding, tuple(kept))

    @property
    def size(self) -> float:
        """Root mean square of what is to be met, in units of rounding."""
        return float((self._flat(self.moves) * self._scale).square().mean().sqrt())

    def residuals(self, client: Unknowns) -> Tensor:
        """Return the residuals (M,)."""
        return self._rest(chosen(self.simulation.moves(client), self.columns))

    def linearised(self, model: Model, client: Unknowns) -> tuple[Tensor, Tensor]:
        """Return the residuals (M,) and their derivatives (M, P)."""
        directions = model.directions.to(TANGENTS)
        moves, tangents = moves_and_tangents(self.simulation, client, directions, self.columns)
        slope = torch.cat([tangent.flatten(0, 1) for tangent in tangents]).double()
        return self._rest(chosen(moves, self.columns)), slope.mul_(self._scale[:, None])

    def cost(self, model: Model) -> float:
        """Return about how many multiplications `linearised` and a step take."""
        client, directions = model.start, model.directions
        count = directions.inputs.shape[2]
        is_used = (client.shares != 0) | directions.shares.any(dim=2)
        used, weights = float(is_used.sum()), self.simulation.weights
        products = used * count * sum(4 * w.numel() for w in weights)
        for w in weights[1:-1]:
            products += used**2 * count * sum(w.shape)
        return float(products + len(self._scale) * count**2 + len(client.shares) * A_STEP)

    def _rest(self, moves: Weights) -> Tensor:
        return (self._flat(moves) - self._flat(self.moves)) * self._scale

    def _flat(self, parts: Weights) -> Tensor:
        return torch.cat([part.flatten() for part in parts])

    @cached_property
    def _scale(self) -> Tensor:
        pairs = zip(self.moves, self.rounding, strict=True)
        return torch.cat([move.new_full((move.numel(),), 1 / size) for move, size in pairs])


def columns_taken(weights: Sequence[Tensor], most: int) -> list[Tensor | None]:
    """Return the columns of each layer that say as much as all: of those between, at most so many.

    Args:
        weights: of each layer, or what is of their shapes.
        most: of a layer between the first and the last.

    Returns:
        Indices; None for all.
    """
    taken: list[Tensor | None] = [None] * len(weights)
    for index in range(1, len(weights) - 1):
        width = weights[index].shape[1]
        taken[index] = torch.linspace(0, width - 1, min(width, most)).round().long()
    return taken


def chosen(moves: Sequence[Tensor], columns: Sequence[Tensor | None]) -> Weights:
    """Return these columns of each layer."""
    pairs = zip(moves, columns, strict=True)
    return tuple(move if only is None else move[:, only] for move, only in pairs)


@dataclass(eq=False)
class Effort:
    """Multiplications that may be spent on a leak, counted so that time doesn't decide.

    Args:
        left: of them.
    """

    left: float = MOST_EFFORT

    @property
    def is_spent(self) -> bool:
        """Whether none are left."""
        return self.left <= 0


def refine(equations: System, model: Model, effort: Effort, most: int = MOST_REFINING) -> Refined:
    """Take steps until the merit settles.

    Args:
        equations: to be met.
        model: what is free, and where to start.
        effort: that is left; each step spends of it.
        most: steps.
    """
    client, damping, idle = model.start, FIRST_DAMPING, 0
    cost = equations.cost(model)
    effort.left -= cost
    rest, slope = equations.linearised(model, client)
    for _ in range(most):
        size = robust_size(rest)
        weight = 1 / (1 + (rest / size) ** 2)
        normal = _normal(slope, weight)
        target = slope.T @ (weight * rest)
        before = merit_of(rest, size)
        while True:
            step = _solved(normal, target, damping)
            moved = client.moved(model.directions.along(-step))
            after = equations.residuals(moved)
            now = merit_of(after, size)
            if now < before or damping > MOST_DAMPING:
                break
            damping = max(damping, LEAST_DAMPING) * 8
        if not now < before:
            break
        damping = max(damping / 8, LEAST_DAMPING)
        client = moved
        idle = idle + 1 if now > (1 - LEAST_FALL) * before else 0
        if idle == 2 or effort.is_spent:
            break
        effort.left -= cost
        rest, slope = equations.linearised(model, client)
    spread = _spread(model, rest, slope)
    return Refined(client, equations.residuals(client), spread, equations.size)


def robust_size(rest: Tensor) -> float:
    """Return s, at least one rounding."""
    return max(ROBUST_SCALE * float(rest.abs().median()), 1.0)


def merit_of(rest: Tensor, size: float) -> float:
    """Return `Σ s² log(1 + (r / s)²)`."""
    value = float(size**2 * torch.log1p((rest / size) ** 2).sum())
    return value if value == value else float("inf")


def _solved(normal: Tensor, target: Tensor, damping: float) -> Tensor:
    diagonal = normal.diagonal()
    damped = normal + torch.diag(damping * diagonal + 1e-14 * diagonal.max() + 1e-300)
    factor, info = torch.linalg.cholesky_ex(damped)
    if int(info):
        found: Tensor = torch.linalg.lstsq(damped, target[:, None], driver="gelsd").solution
        return found[:, 0]
    return torch.cholesky_solve(target[:, None], factor)[:, 0]


def _spread(model: Model, rest: Tensor, slope: Tensor) -> Unknowns:
    """Return standard deviations of the unknowns, by the normal equations where steps ended.

    What the equations don't tell is large here, not left out: where a softmax is saturated in the
    only step that takes an example, its label's distance from one-hot times its scale is all that
    shows.
    """
    weight = 1 / (1 + (rest / robust_size(rest)) ** 2)
    normal = _normal(slope, weight)
    size = normal.diagonal().clamp(min=1e-300).sqrt()
    values, ways = torch.linalg.eigh(normal / size / size[:, None])
    root = ways / (values - TANGENTS_NOISE).clamp(min=LEAST_TOLD).sqrt() / size[:, None]
    d = model.directions
    return Unknowns(*((part @ root).norm(dim=2) for part in (d.inputs, d.labels, d.shares)))


def _normal(slope: Tensor, weight: Tensor) -> Tensor:
    """Return `Jᵀ diag(w) J`, (P, P)."""
    weighted = slope * weight.sqrt()[:, None]
    return weighted.T @ weighted
