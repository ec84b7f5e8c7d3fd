"""SGD on a chain of linear layers, simulated in coordinates of the examples' span, with tangents.

Every step moves the first layer by `Σ_b δ_b x_bᵀ`, so with orthonormal rows V that span the
examples, `x_b = Vᵀ α_b`, its change lies in the span of V, however many steps there are:

    C = W_1 Vᵀ (D, r),      z_b = C α_b,      ∂L/∂C = Σ_b ω_tb δ_b α_bᵀ,

and nothing of the simulation is as wide as an image. A bias is a further column, whose input is 1.
`ω_tb` is the weight of example b in step t: 1/B in the steps that take it, 0 in the others.

Tangents go along (forward mode): a handful of directions at once, each one batched product.
Masks are constant along them, as they are almost everywhere.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.training import SGD


@dataclass(frozen=True, eq=False)
class Unknowns:
    """What a client trained on, or directions of it.

    Args:
        inputs: α, (n, r), or (P, n, r).
        labels: y, (n, K), or (P, n, K).
        shares: ω, (S, n), or (P, S, n).
    """

    inputs: Tensor
    labels: Tensor
    shares: Tensor

    def moved(self, change: Unknowns) -> Unknowns:
        """Return the sum of both."""
        return Unknowns(
            self.inputs + change.inputs, self.labels + change.labels, self.shares + change.shares
        )


@dataclass(frozen=True, eq=False)
class Simulation:
    """A client's training, as far as it is told.

    Args:
        weights: of each layer at the start, the first in the span's coordinates; (m, n), or
            (m, n + 1) with the bias as the last column; the first layer's bias is in its span.
        biases: whether each layer but the first has one.
        slopes: of the activation behind each layer but the last, below 0; above 0 it is 1.
        optimizer: told.
        kept: A, what weight decay leaves of the start.
        bend: width at either side of 0 over which an activation's slope grows linearly, so that
            masks change with the unknowns; 0 is what clients have.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[bool, ...]
    slopes: tuple[float, ...]
    optimizer: SGD
    kept: float
    bend: float = 0.0

    def only(self, live: list[Tensor]) -> Simulation:
        """Return the training without units that no step moves.

        Args:
            live: indices of those that are left, behind each layer but the last.
        """
        weights = list(self.weights)
        for index, units in enumerate(live):
            weights[index] = weights[index][units]
            above = weights[index + 1]
            if self.biases[index + 1]:
                bias = torch.tensor([above.shape[1] - 1])
                units = torch.cat([units, bias])
            weights[index + 1] = above[:, units]
        return dataclasses.replace(self, weights=tuple(weights))

    def moves(self, client: Unknowns) -> tuple[Tensor, ...]:
        """Return what all steps took off the weights, `A w_0 − w_S`, layer by layer."""
        return self._train(client, None)[0]

    def moves_and_tangents(
        self, client: Unknowns, directions: Unknowns
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return them, and how they change in P directions, each (P, m, n)."""
        return self._train(client, directions)

    def _train(
        self, client: Unknowns, directions: Unknowns | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        weights = self.weights
        count = 0 if directions is None else len(directions.inputs)
        tangents = tuple(w.new_zeros((count, *w.shape)) for w in weights)
        buffers: tuple[Tensor, ...] | None = None
        turns: tuple[Tensor, ...] | None = None
        for step in range(len(client.shares)):
            gradients, turned = self._gradients(weights, tangents, client, directions, step)
            weights, buffers = self._step(weights, gradients, buffers)
            if directions is not None:
                tangents, turns = self._step(tangents, turned, turns)
        moves = tuple(self.kept * w - after for w, after in zip(self.weights, weights, strict=True))
        return moves, tuple(-t for t in tangents)

    def _step(
        self,
        weights: tuple[Tensor, ...],
        gradients: tuple[Tensor, ...],
        buffers: tuple[Tensor, ...] | None,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]:
        """Take a step of PyTorch's SGD, which is linear: of weights, or of tangents."""
        sgd = self.optimizer
        if sgd.weight_decay:
            pairs = zip(gradients, weights, strict=True)
            gradients = tuple(g + sgd.weight_decay * w for g, w in pairs)
        if not sgd.momentum:
            return tuple(w - sgd.lr * g for w, g in zip(weights, gradients, strict=True)), None
        if buffers is None:
            buffers = gradients
        else:
            pairs = zip(buffers, gradients, strict=True)
            buffers = tuple(sgd.momentum * v + (1 - sgd.dampening) * g for v, g in pairs)
        moved = buffers
        if sgd.nesterov:
            moved = tuple(g + sgd.momentum * v for g, v in zip(gradients, buffers, strict=True))
        return tuple(w - sgd.lr * m for w, m in zip(weights, moved, strict=True)), buffers

    def _gradients(
        self,
        weights: tuple[Tensor, ...],
        tangents: tuple[Tensor, ...],
        client: Unknowns,
        directions: Unknowns | None,
        step: int,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the gradients of one step, and their tangents."""
        share = client.shares[step]
        used = (share != 0).nonzero()[:, 0] if directions is None else slice(None)
        value, label, share = client.inputs[used], client.labels[used], share[used]
        turn = directions.inputs if directions is not None else None
        values, turns, slopes, bends = [], [], [], []
        for index, w in enumerate(weights):
            if index and self.biases[index]:
                value = torch.cat([value, value.new_ones(len(value), 1)], dim=1)
                if turn is not None:
                    turn = torch.cat([turn, turn.new_zeros(*turn.shape[:2], 1)], dim=2)
            values.append(value)
            turns.append(turn)
            z = value @ w.T
            if turn is not None:
                turn = turn @ w.T + value @ tangents[index].mT
            if index < len(self.slopes):
                z, slope, curve = self._activate(z, self.slopes[index])
                slopes.append(slope)
                bends.append(None if turn is None or curve is None else turn * curve)
                turn = None if turn is None else turn.mul_(slope)
            value = z
        p = value.softmax(dim=1)
        error = p - label
        down = share[:, None] * error
        turned = None
        if directions is not None:
            assert turn is not None
            turned = p * turn
            turned = turned - p * turned.sum(dim=2, keepdim=True) - directions.labels
            turned = share[:, None] * turned + directions.shares[:, step, :, None] * error
        found: list[Tensor] = []
        along: list[Tensor] = []
        for index in range(len(weights) - 1, -1, -1):
            found.append(down.T @ values[index])
            if turned is not None:
                below = turns[index]
                assert below is not None
                along.append(turned.mT @ values[index] + down.T @ below)
            if not index:
                break
            width = weights[index].shape[1] - self.biases[index]
            w = weights[index][:, :width]
            if turned is not None:
                turned = turned @ w + down @ tangents[index][:, :, :width]
                turned = turned.mul_(slopes[index - 1])
            down = down @ w
            bent = bends[index - 1]
            if turned is not None and bent is not None:
                turned = turned.add_(bent.mul_(down))
            down = down * slopes[index - 1]
        return tuple(found[::-1]), tuple(along[::-1])

    def _activate(self, z: Tensor, low: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return an activation's output, its slope, and where it is bent, the slope's."""
        if not self.bend:
            slope = torch.where(z > 0, 1.0, low).to(z)
            return slope * z, slope, None
        share = ((z + self.bend) / (2 * self.bend)).clamp(0, 1)
        smooth = torch.where(z.abs() < self.bend, self.bend * share**2, z.clamp(min=0))
        curve = torch.where(z.abs() < self.bend, (1 - low) / (2 * self.bend), 0.0).to(z)
        return low * z + (1 - low) * smooth, low + (1 - low) * share, curve
