"""Dropout in train mode behind the first layer's ReLU: which units it left, example by example.

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


def is_behind_first_layer(leak: GradientLeak, network: Network) -> bool:
    """Say whether dropout behind the first layer's ReLU is all that the client's network drew."""
    drawing = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    if leak.mode != "train" or not any(isinstance(m, drawing) for m in leak.model.modules()):
        return False
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in leak.model.modules()):
        return False
    before, *behind = [call.kept for call in network.trace]
    if before < 1 or not behind or behind[0] == 1 or any(kept < 1 for kept in behind[1:]):
        return False
    return FullyConnected.of(leak, network).activations[0].low == 0


class Dropped:
    """The way through a network of which a client dropped units of the first hidden layer.

    Args:
        network: a chain of linear layers, with its gradients.
        factors: (B, m), on the first layer's outputs.
    """

    def __init__(self, network: FullyConnected, factors: Array) -> None:
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
        """See which units are left by what the second layer's gradient has for its inputs.

        Args:
            network: with its gradients.
            inputs: of the first layer.
            features: (B, D), the last layer's inputs.
            labels: (B, K).
            generator: draws the probes of the gradients' column spaces.
        """
        second = invert_batch(network.above_layer(1), features, labels, generator).a.numpy()
        outputs = network.forward(inputs.a.numpy())[1] / network.kept[0]
        is_left = (second > LEFT * outputs) & (outputs > 0)
        return cls(network, np.where(is_left, 1 / network.kept[0], 0.0))

    def inputs_of(self, a: Tensor) -> dict[str, Tensor]:
        """Return each layer's inputs on first inputs (B, n)."""
        values = self.network.forward(a.flatten(1).numpy(), self.factors)
        names = [layer.name for layer in self.network.layers]
        return dict(zip(names, map(torch.from_numpy, values), strict=False))
