"""Robust Gauss-Newton through the simulated training: what examples leave exactly this update.

Residuals are `moves(α, y) − D`, each layer's in units of its rounding. A unit whose mask is wrong
in some step misses by orders of magnitude more than others, so each entry has the weight
`1 / (1 + (r / s)²)`, s = 1.5 · median |r|, and the merit is `Σ s² log(1 + (r / s)²)`; steps are
damped (Levenberg, Marquardt). Least squares would stall at such units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.unrolled.pairs import ROBUST_SCALE
from attacks.unrolled.problem import Update
from attacks.unrolled.simulation import Simulation, Unknowns

MOST_REFINING = 40
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-3, 1e-12, 1e4
"""Added to the normal equations, relative to their diagonal."""
LEAST_FALL = 1e-3
"""Relative fall of the merit below which a step counts as the last, twice in a row."""


@dataclass(frozen=True, eq=False)
class Model:
    """Which unknowns are free: all depend on the parameters as an affine map.

    Args:
        start: to refine.
        directions: of the parameters, (P, …).
    """

    start: Unknowns
    directions: Unknowns

    def along(self, step: Tensor) -> Unknowns:
        """Return the change of the unknowns in a step (P,) of the parameters."""
        d = self.directions
        return Unknowns(
            *(torch.tensordot(step, part, 1) for part in (d.inputs, d.labels, d.shares))
        )


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


@dataclass(frozen=True, eq=False)
class Equations:
    """The residuals of live units, and their derivatives.

    Args:
        simulation: of these units.
        moves: what is to be met.
        rounding: of the layers.
    """

    simulation: Simulation
    moves: tuple[Tensor, ...]
    rounding: tuple[float, ...]

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
        return cls(update.simulation.only(live), tuple(moves), update.rounding)

    @property
    def size(self) -> float:
        """Root mean square of what is to be met, in units of rounding."""
        return float(self._flat(list(self.moves)).square().mean().sqrt())

    def residuals(self, client: Unknowns) -> Tensor:
        """Return the residuals (M,)."""
        return self._flat(
            [m - d for m, d in zip(self.simulation.moves(client), self.moves, strict=True)]
        )

    def linearised(self, model: Model, client: Unknowns) -> tuple[Tensor, Tensor]:
        """Return the residuals (M,) and their derivatives (P, M)."""
        moves, tangents = self.simulation.moves_and_tangents(client, model.directions)
        rest = self._flat([m - d for m, d in zip(moves, self.moves, strict=True)])
        return rest, self._flat(list(tangents), 1)

    def _flat(self, parts: list[Tensor], start: int = 0) -> Tensor:
        scaled = [
            (part / size).flatten(start) for part, size in zip(parts, self.rounding, strict=True)
        ]
        return torch.cat(scaled, dim=start)


def refine(equations: Equations, model: Model, most: int = MOST_REFINING) -> Refined:
    """Take steps until the merit settles.

    Args:
        equations: to be met.
        model: what is free, and where to start.
        most: steps.
    """
    client, damping, idle = model.start, FIRST_DAMPING, 0
    rest, slope = equations.linearised(model, client)
    for _ in range(most):
        size = robust_size(rest)
        weight = 1 / (1 + (rest / size) ** 2)
        normal = (slope * weight) @ slope.T
        target = slope @ (weight * rest)
        before = merit(rest, size)
        while True:
            step = _solved(normal, target, damping)
            moved = client.moved(model.along(-step))
            after = equations.residuals(moved)
            now = merit(after, size)
            if now < before or damping > MOST_DAMPING:
                break
            damping = max(damping, LEAST_DAMPING) * 8
        if not now < before:
            break
        damping = max(damping / 8, LEAST_DAMPING)
        client = moved
        idle = idle + 1 if now > (1 - LEAST_FALL) * before else 0
        if idle == 2:
            break
        rest, slope = equations.linearised(model, client)
    spread = _spread(model, rest, slope)
    return Refined(client, equations.residuals(client), spread, equations.size)


def robust_size(rest: Tensor) -> float:
    """Return s, at least one rounding."""
    return max(ROBUST_SCALE * float(rest.abs().median()), 1.0)


def merit(rest: Tensor, size: float) -> float:
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
    """Return standard deviations of the unknowns, by the normal equations where steps ended."""
    weight = 1 / (1 + (rest / robust_size(rest)) ** 2)
    inverse = torch.linalg.pinv((slope * weight) @ slope.T, hermitian=True)
    parts = []
    for part in (model.directions.inputs, model.directions.labels, model.directions.shares):
        rows = part.flatten(1).T
        parts.append(
            ((rows @ inverse) * rows).sum(dim=1).clamp(min=0).sqrt().reshape(part.shape[1:])
        )
    return Unknowns(*parts)
