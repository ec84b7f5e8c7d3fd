"""Dropout in train mode behind ReLUs of hidden layers: which units it left, example by example.

To the way down a network it is no obstacle: an entry of δ is 0 or `(W δ') / kept`, as with a ReLU's
mask alone, and the next layer's inputs are what it left. But a test that sends images forward has
to drop the same units.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from attacks.dense.batch import invert_batch
from attacks.dense.inputs import Inputs
from attacks.dense.network import FullyConnected
from attacks.types import GradientLeak
from attacks.victim.gradients import Array
from attacks.victim.network import Network

LEFT = 0.5
"""Share of its output from which the next layer's input shows that a unit was left."""


def is_behind_relus(leak: GradientLeak, network: Network) -> bool:
    """Say whether dropout behind ReLUs of hidden layers is all that the client's network drew."""
    if leak.mode != "train":
        return False
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in leak.model.modules()):
        return False
    before, *behind = [call.kept for call in network.trace]
    if before < 1 or not any(kept < 1 for kept in behind):
        return False
    activations = FullyConnected.of(leak, network).activations
    return all(a.low == 0 for a, kept in zip(activations, behind, strict=True) if kept < 1)


class Dropped:
    """The way through a network of which a client dropped units of hidden layers.

    Args:
        network: a chain of linear layers, with its gradients.
        factors: (B, m) each, on the outputs of hidden layers from the first; None for no dropout.
    """

    def __init__(self, network: FullyConnected, factors: tuple[Array | None, ...]) -> None:
        self.network, self.factors = network, factors

    @classmethod
    def of(
        cls,
        network: FullyConnected,
        inputs: Inputs,
        features: Array,
        labels: Array,
        generator: torch.Generator,
    ) -> Dropped:
        """See which units are left by what the next layer's gradient has for its inputs.

        Args:
            network: with its gradients.
            inputs: of the first layer.
            features: (B, D), the last layer's inputs.
            labels: (B, K).
            generator: draws the probes of the gradients' column spaces.
        """
        factors: list[Array | None] = []
        for index, kept in enumerate(network.kept):
            if kept == 1:
                factors.append(None)
                continue
            outputs = network.forward(inputs.a.numpy(), *factors)[index + 1] / kept
            above = network.above_layer(index + 1)
            shown = invert_batch(above, features, labels, generator).a.numpy()
            is_left = (shown > LEFT * outputs) & (outputs > 0)
            factors.append(np.where(is_left, 1 / kept, 0.0))
        return cls(network, tuple(factors))

    def inputs_of(self, a: Tensor) -> dict[str, Tensor]:
        """Return each layer's inputs on first inputs (B, n)."""
        values = self.network.forward(a.flatten(1).numpy(), *self.factors)
        names = [layer.name for layer in self.network.layers]
        return dict(zip(names, map(torch.from_numpy, values), strict=False))
