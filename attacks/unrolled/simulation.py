"""SGD on a chain of linear layers, simulated in coordinates of the examples' span.

Every step moves the first layer by `Σ_b δ_b x_bᵀ`, so with orthonormal rows V that span the
examples, `x_b = Vᵀ α_b`, its change lies in the span of V, however many steps there are:

    C = W_1 Vᵀ (D, r),      z_b = C α_b,      ∂L/∂C = Σ_b ω_tb δ_b α_bᵀ,

and nothing of the simulation is as wide as an image. A bias is a further column, whose input is 1.
`ω_tb` is the weight of example b in step t: 1/B in the steps that take it, 0 in the others.

How all this changes with the examples is the matter of `attacks.unrolled.tangents`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attacks.dense.network import FullyConnected
from attacks.training import SGD
from attacks.victim.gradients import Array

Weights = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Unknowns:
    """What a client trained on.

    Args:
        inputs: α, (n, r).
        labels: y, (n, K).
        shares: ω, (S, n).
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
class Pass:
    """A step's way forward and back; examples are rows.

    Args:
        used: indices of the step's examples, (n,).
        share: their ω, (n,).
        weights: at which the gradient is taken.
        values: each layer's inputs, with the bias's 1 behind them, (n, …).
        slopes: of the activations, (n, …).
        curves: where an activation is bent, its slope's; else None.
        logits: (n, K).
        p: their softmax.
        errors: `p − y`, (n, K).
        downs: ω times the loss's derivative by each layer's outputs, (n, …).
        arriving: the same by each activation's outputs, (n, …).
    """

    used: Tensor
    share: Tensor
    weights: Weights
    values: Weights
    slopes: Weights
    curves: tuple[Tensor | None, ...]
    logits: Tensor
    p: Tensor
    errors: Tensor
    downs: Weights
    arriving: Weights

    @property
    def gradients(self) -> Weights:
        """Of each layer."""
        pairs = zip(self.downs, self.values, strict=True)
        return tuple(down.T @ value for down, value in pairs)


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
        masks: of the activation behind each layer but the last, the slopes (n, m) that examples are
            known to have there, whatever their outputs; None: outputs tell.
    """

    weights: Weights
    biases: tuple[bool, ...]
    slopes: tuple[float, ...]
    optimizer: SGD
    kept: float
    bend: float = 0.0
    masks: Weights | None = None

    @classmethod
    def of(cls, chain: FullyConnected, span: Array, optimizer: SGD, steps: int) -> Simulation:
        """Return the training of a chain.

        Args:
            chain: at the weights of the start, ends with the last layer.
            span: orthonormal rows (r, n) that the first layer's inputs lie in; with a bias, its
                input is the last column.
            optimizer: told.
            steps: S.
        """
        weights = [layer.weight for layer in chain.layers]
        weights[0] = weights[0] @ span.T
        return cls(
            tuple(torch.from_numpy(np.ascontiguousarray(w)) for w in weights),
            (False, *(layer.has_bias for layer in chain.layers[1:])),
            tuple(float(a.low or 0.0) for a in chain.activations),
            optimizer,
            optimizer.linear_map(steps)[0],
        )

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

    def moves(self, client: Unknowns) -> Weights:
        """Return what all steps took off the weights, `A w_0 − w_S`, layer by layer."""
        *_, (_, after) = self.passes(client)
        return tuple(self.kept * w - end for w, end in zip(self.weights, after, strict=True))

    def passes(
        self, client: Unknowns, is_used: Tensor | None = None
    ) -> Iterator[tuple[Pass, Weights]]:
        """Train; yield each step, and the weights behind it.

        Args:
            client: what is trained on.
            is_used: (S, n), examples to follow in each step; None: those of a weight but 0.
        """
        weights, buffers = self.weights, None
        is_used = client.shares != 0 if is_used is None else is_used
        for used, share in zip(is_used, client.shares, strict=True):
            step = self.pass_of(weights, client, share, used.nonzero()[:, 0])
            weights, buffers = self.optimizer.step(weights, step.gradients, buffers)
            yield step, weights

    def pass_of(self, weights: Weights, client: Unknowns, share: Tensor, used: Tensor) -> Pass:
        """Return one step's way forward and back.

        Args:
            weights: at the step.
            client: what is trained on.
            share: ω of the step, (n,).
            used: indices of the examples to follow.
        """
        value, share = client.inputs[used], share[used]
        values, slopes, curves = [], [], []
        for index, w in enumerate(weights):
            if index and self.biases[index]:
                value = torch.cat([value, value.new_ones(len(value), 1)], dim=1)
            values.append(value)
            value = value @ w.T
            if index < len(self.slopes):
                known = None if self.masks is None else self.masks[index][used]
                value, slope, curve = self._activate(value, self.slopes[index], known)
                slopes.append(slope)
                curves.append(curve)
        p = value.softmax(dim=1)
        errors = p - client.labels[used]
        down = share[:, None] * errors
        downs, arriving = [down], []
        for index in range(len(weights) - 1, 0, -1):
            w = weights[index]
            down = down @ w[:, : w.shape[1] - self.biases[index]]
            arriving.append(down)
            down = down * slopes[index - 1]
            downs.append(down)
        return Pass(
            used,
            share,
            weights,
            tuple(values),
            tuple(slopes),
            tuple(curves),
            value,
            p,
            errors,
            tuple(downs[::-1]),
            tuple(arriving[::-1]),
        )

    def _activate(
        self, z: Tensor, low: float, known: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return an activation's output, its slope, and where it is bent, the slope's."""
        if known is not None:
            return known * z, known, None
        if not self.bend:
            slope = torch.where(z > 0, 1.0, low).to(z)
            return slope * z, slope, None
        share = ((z + self.bend) / (2 * self.bend)).clamp(0, 1)
        smooth = torch.where(z.abs() < self.bend, self.bend * share**2, z.clamp(min=0))
        curve = torch.where(z.abs() < self.bend, (1 - low) / (2 * self.bend), 0.0).to(z)
        return low * z + (1 - low) * smooth, low + (1 - low) * share, curve
