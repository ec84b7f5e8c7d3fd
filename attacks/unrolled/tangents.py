"""How what several steps leave changes with the examples: forward mode, all directions at once.

Directions are the last axis, so that each product is one of large matrices, and in the precision of
the directions: single precision does for Gauss-Newton steps, which correct each other.

A tangent of weights is kept in the form that is cheapest: of the first and of the last layer, which
are narrow, as itself; of a layer between, whose gradients are sums over a few examples, as those
sums, `dW_t = − Σ_s c_ts Σ_b (dδ_sb h_sbᵀ + δ_sb dh_sbᵀ)`, with c_ts what the optimizer makes of a
gradient of step s up to step t. Masks are constant along directions, as they are almost everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from attacks.training import SGD
from attacks.unrolled.simulation import Pass, Simulation, Unknowns, Weights


@dataclass(frozen=True, eq=False)
class Directions:
    """P directions in which a client's examples may change.

    Args:
        inputs: dα, (n, r, P).
        labels: dy, (n, K, P).
        shares: dω, (S, n, P).
    """

    inputs: Tensor
    labels: Tensor
    shares: Tensor

    def to(self, dtype: torch.dtype) -> Directions:
        """Return them in another precision."""
        return Directions(self.inputs.to(dtype), self.labels.to(dtype), self.shares.to(dtype))

    def along(self, step: Tensor) -> Unknowns:
        """Return the change of the unknowns in a step (P,) along the directions."""
        parts = (self.inputs, self.labels, self.shares)
        return Unknowns(*(part @ step for part in parts))


def moves_and_tangents(
    simulation: Simulation,
    client: Unknowns,
    directions: Directions,
    columns: Sequence[Tensor | None],
) -> tuple[Weights, Weights]:
    """Return what all steps took off the weights, and how that changes.

    Args:
        simulation: of the training.
        client: what is trained on.
        directions: in which that changes.
        columns: of each layer, those whose tangents are wanted; None for all. All of the first's
            and of the last's are.

    Returns:
        Moves (m, n) of each layer, and tangents (m, n, P), or (m, columns, P).
    """
    kinds: list[_Tangent] = [
        _First(simulation.optimizer),
        *(_Between(simulation.optimizer) for _ in simulation.weights[2:]),
        _Last(simulation.optimizer),
    ]
    is_used = (client.shares != 0) | directions.shares.any(dim=2)
    after = simulation.weights
    for index, (step, after) in enumerate(simulation.passes(client, is_used)):  # noqa: B007
        _follow(simulation, step, directions, index, kinds)
    moves = tuple(
        simulation.kept * w - end for w, end in zip(simulation.weights, after, strict=True)
    )
    pairs = zip(kinds, columns, strict=True)
    return moves, tuple(-kind.whole(only) for kind, only in pairs)


def _follow(
    simulation: Simulation,
    step: Pass,
    directions: Directions,
    index: int,
    kinds: Sequence[_Tangent],
) -> None:
    """Send the directions through a step, and add what they do to the weights' tangents."""
    used, dtype = step.used, directions.inputs.dtype
    turn = directions.inputs[used]  # (n, r, P); behind the first layer (units, n, P)
    turns, bends = [turn], []
    for layer, (w, kind) in enumerate(zip(step.weights, kinds, strict=True)):
        value = step.values[layer].to(dtype)
        if not layer:
            turn = torch.matmul(w.to(dtype), turn).transpose(0, 1)
        else:
            count = len(turn)
            turn = (w[:, :count].to(dtype) @ turn.flatten(1)).reshape(-1, *turn.shape[1:])
        turn = kind.add_outputs(turn, value)
        if layer < len(step.slopes):
            curve = step.curves[layer]
            bends.append(None if curve is None else turn * _units(curve, dtype))
            turn = turn.mul_(_units(step.slopes[layer], dtype))
            turns.append(turn)
    p = _units(step.p, dtype)
    turned = p * (turn - (p * turn).sum(dim=0)) - directions.labels[used].transpose(0, 1)
    turned = step.share.to(dtype)[:, None] * turned
    shares = directions.shares[index][used]
    if shares.any():
        turned = turned + _units(step.errors, dtype) * shares
    for layer in range(len(kinds) - 1, -1, -1):
        down = step.downs[layer].to(dtype)
        below = None
        if layer:
            w = step.weights[layer]
            w = w[:, : w.shape[1] - simulation.biases[layer]].to(dtype)
            below = (w.T @ turned.flatten(1)).reshape(-1, *turned.shape[1:])
            below = kinds[layer].add_inputs(below, down)
            below = below.mul_(_units(step.slopes[layer - 1], dtype))
            bent = bends[layer - 1]
            if bent is not None:
                below = below.add_(bent.mul_(_units(step.arriving[layer - 1], dtype)))
        kinds[layer].grow(turned, down, turns[layer], step.values[layer].to(dtype))
        if below is not None:
            turned = below


def _units(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (n, units) as (units, n, 1)."""
    return rows.T.to(dtype)[:, :, None]


class _Tangent(Protocol):
    """How the weights of a layer change, in all directions."""

    def add_outputs(self, turn: Tensor, value: Tensor) -> Tensor:
        """Add `dW h` (units, n, P) of inputs (n, inputs)."""
        ...

    def add_inputs(self, turned: Tensor, down: Tensor) -> Tensor:
        """Add `dWᵀ δ` (inputs, n, P) of δ (n, units)."""
        ...

    def grow(self, turned: Tensor, down: Tensor, turn: Tensor, value: Tensor) -> None:
        """Take a step whose gradient's tangent is `dδ hᵀ + δ dhᵀ`."""
        ...

    def whole(self, columns: Tensor | None) -> Tensor:
        """Return dW, (units, inputs, P)."""
        ...


@dataclass(eq=False)
class _First:
    """Of the first layer: (units, r, P)."""

    optimizer: SGD
    tangent: tuple[Tensor, ...] = ()
    buffers: tuple[Tensor, ...] | None = None

    def add_outputs(self, turn: Tensor, value: Tensor) -> Tensor:
        if not self.tangent:
            return turn
        return torch.baddbmm(turn, value.expand(len(turn), -1, -1), self.tangent[0])

    def add_inputs(self, turned: Tensor, down: Tensor) -> Tensor:
        return turned

    def grow(self, turned: Tensor, down: Tensor, turn: Tensor, value: Tensor) -> None:
        gradient = (down.T @ turn.flatten(1)).reshape(-1, *turn.shape[1:])
        self._step(gradient.baddbmm_(value.T.expand(len(gradient), -1, -1), turned))

    def _step(self, gradient: Tensor) -> None:
        before = self.tangent or (gradient.new_zeros(1).expand_as(gradient),)
        self.tangent, self.buffers = self.optimizer.step(before, (gradient,), self.buffers)

    def whole(self, columns: Tensor | None) -> Tensor:
        return self.tangent[0]


class _Last(_First):
    """Of the last layer: (inputs, K, P), the bias last."""

    def add_outputs(self, turn: Tensor, value: Tensor) -> Tensor:
        if not self.tangent:
            return turn
        own = self.tangent[0]
        return turn + (value @ own.flatten(1)).reshape(-1, *own.shape[1:]).transpose(0, 1)

    def add_inputs(self, turned: Tensor, down: Tensor) -> Tensor:
        if not self.tangent:
            return turned
        return turned.baddbmm_(down.expand(len(turned), -1, -1), self.tangent[0][: len(turned)])

    def grow(self, turned: Tensor, down: Tensor, turn: Tensor, value: Tensor) -> None:
        by_example = turned.transpose(0, 1).flatten(1)
        gradient = (value.T @ by_example).reshape(value.shape[1], len(turned), -1)
        gradient[: len(turn)].baddbmm_(down.T.expand(len(turn), -1, -1), turn)
        self._step(gradient)

    def whole(self, columns: Tensor | None) -> Tensor:
        return self.tangent[0].transpose(0, 1)


@dataclass(eq=False)
class _Between:
    """Of a layer between: the steps' dδ, δ, dh and h; the bias is the last of h."""

    optimizer: SGD
    steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)

    def add_outputs(self, turn: Tensor, value: Tensor) -> Tensor:
        for factor, (turned, down, below, given) in self._weighted():
            turn = turn - torch.matmul(factor * (value @ given.T), turned)
            inner = torch.matmul(value[:, : len(below)], below.transpose(0, 1))
            inner = (factor * down.T @ inner.flatten(1)).reshape(-1, *inner.shape[1:])
            turn = turn.sub_(inner)
        return turn

    def add_inputs(self, turned: Tensor, down: Tensor) -> Tensor:
        count = len(turned)
        for factor, (before, own, below, given) in self._weighted():
            turned = turned.sub_(torch.matmul(factor * (down @ own.T), below))
            inner = torch.matmul(down, before.transpose(0, 1))
            inner = (factor * given.T[:count] @ inner.flatten(1)).reshape(-1, *inner.shape[1:])
            turned = turned.sub_(inner)
        return turned

    def grow(self, turned: Tensor, down: Tensor, turn: Tensor, value: Tensor) -> None:
        self.steps.append((turned, down, turn, value))

    def whole(self, columns: Tensor | None) -> Tensor:
        found: Tensor | None = None
        for factor, (turned, down, turn, value) in self._weighted():
            only = torch.arange(value.shape[1]) if columns is None else columns
            part = torch.matmul(factor * value[:, only].T, turned)
            is_unit = only < len(turn)
            part[:, is_unit] += torch.matmul(factor * down.T, turn[only[is_unit]]).transpose(0, 1)
            found = part if found is None else found.add_(part)
        assert found is not None
        return -found

    def _weighted(self) -> list[tuple[float, tuple[Tensor, Tensor, Tensor, Tensor]]]:
        factors = self.optimizer.responses(len(self.steps))
        return list(zip(factors, self.steps, strict=True))
