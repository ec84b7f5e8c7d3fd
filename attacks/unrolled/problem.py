"""What a client sent after several steps, as equations on the examples' coordinates.

With `A w_0` what weight decay leaves of the start, `D = A w_0 − w_S` is a sum of gradients of all
steps, and the first layer's rows, its bias as a further column, lie in the span of the `[x_b; 1]`:
`D_1 = U S V` has their number n as its rank. `attacks.unrolled.simulation` says what D would be.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from attacks.batch.subspace import noise_of_rows_and_columns, signal_size
from attacks.dense.network import FullyConnected
from attacks.training import SGD
from attacks.types import GradientLeak, NotApplicable
from attacks.unrolled.schedule import Timetable
from attacks.unrolled.simulation import Simulation
from attacks.victim.gradients import Array
from attacks.victim.network import Network

REPEATABLE = 2000
"""Local steps, at most: a client says how many it took, and the server's memory grows with them."""


@dataclass(frozen=True, eq=False)
class Update:
    """A client's update, and the training that is told of it.

    Args:
        chain: the network with `D / reach` as its gradients: a mean over all steps.
        optimizer: told.
        steps: S.
        span: V, (n, d), orthonormal rows; with a bias, its input is the last column.
        reach: what all steps together multiply a constant gradient by, lr · S without momentum.
        timetable: what is told of the steps' batches.
    """

    chain: FullyConnected
    optimizer: SGD
    steps: int
    span: Array
    reach: float
    timetable: Timetable

    @classmethod
    def of(cls, leak: GradientLeak, network: Network) -> Update:
        """Take a leak of several steps apart.

        Raises:
            NotApplicable: it is none of a fully connected network with two-sloped activations, the
                examples' number is neither told nor shown by the rank, or batches don't fit it.
        """
        optimizer, steps = leak.optimizer, leak.local_steps
        if leak.lr is None or optimizer is None or leak.update_dtype is None:
            raise NotApplicable("that takes the weights that came back, and their learning rate")
        if steps > REPEATABLE:
            raise NotApplicable(
                f"{steps} local steps were told, and at most {REPEATABLE} are tried"
            )
        chain = FullyConnected.of(leak, network)
        require_masks(chain)
        reach = optimizer.linear_map(steps)[1]
        chain = chain.rescaled(reach / leak.lr)
        span = _span_of(chain, leak.steps.distinct)
        return cls(chain, optimizer, steps, span, reach, Timetable.of(leak.steps, len(span)))

    @property
    def examples(self) -> int:
        """n, the rank."""
        return len(self.span)

    @property
    def has_bias(self) -> bool:
        """Whether the first layer has one, whose input is 1."""
        return self.chain.layers[0].has_bias

    @cached_property
    def simulation(self) -> Simulation:
        """The training, in the span's coordinates."""
        return Simulation.of(self.chain, self.span, self.optimizer, self.steps)

    @cached_property
    def moves(self) -> tuple[Tensor, ...]:
        """D of each layer, the first in the span's coordinates."""
        gradients = [self.reach * layer.gradient for layer in self.chain.layers]
        gradients[0] = gradients[0] @ self.span.T
        return tuple(torch.from_numpy(np.ascontiguousarray(g)) for g in gradients)

    @cached_property
    def rounding(self) -> tuple[float, ...]:
        """Root mean square of what the steps' float rounding does to D, layer by layer.

        Every step rounds the weights anew.
        """
        # A step rounds the weights, and the move.
        each = [float(np.sqrt(np.mean(layer.rounding**2))) for layer in self.chain.layers]
        return tuple(self.reach * one * self.steps**0.5 for one in each)

    def parts(self, inputs: Tensor) -> Tensor:
        """Return what of the first layer's D is each example's, (n, D), by all inputs (n, r)."""
        found: Tensor = self.moves[0] @ torch.linalg.pinv(inputs)
        return found.T

    def midway(self) -> FullyConnected:
        """Return the network at the mean of the weights that the steps' gradients are taken at.

        To first order, had all steps had one gradient.
        """
        stays, moved = self.optimizer.mean_map(self.steps)
        layers = [
            dataclasses.replace(layer, weight=stays * layer.weight - moved * layer.gradient)
            for layer in self.chain.layers
        ]
        return dataclasses.replace(self.chain, layers=tuple(layers))


def require_masks(chain: FullyConnected) -> None:
    """Raise unless hidden layers have two-sloped activations.

    Raises:
        NotApplicable: one has another, or there is no hidden layer.
    """
    odd = next((a for a in chain.activations if a.low is None), None)
    if odd is not None:
        raise NotApplicable(f"masks are a ReLU's or leaky ReLU's, and there is {odd.name}")
    if len(chain.layers) < 2:
        raise NotApplicable("the network has one linear layer, and masks are hidden ones'")


def _span_of(chain: FullyConnected, told: int | None) -> Array:
    """Return orthonormal rows (n, d) that the first layer's inputs lie in.

    Raises:
        NotApplicable: as `signal_size` does.
    """
    first = chain.layers[0]
    rows, columns = noise_of_rows_and_columns(first)
    rows = np.maximum(rows, np.sqrt(np.mean(rows**2)))
    whitened = first.gradient / rows[:, None] / columns
    _, values, right = np.linalg.svd(whitened, full_matrices=False)
    size = signal_size(values, whitened.shape, told, f"layer {first.name!r}")
    return np.ascontiguousarray(np.linalg.qr((right[:size] * columns).T)[0].T)
