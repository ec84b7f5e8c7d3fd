"""The features that a recovered one is compared with: what the last layer sees of true images."""

from __future__ import annotations

from torch import Tensor

from attacks import GradientLeak
from attacks.victim.network import Network
from fl_sim.seeds import seeded_layers


class TrueFeatures:
    """The last layer's inputs on true images, in float64.

    Args:
        leak: whose network; what holds of it holds of all leaks of the same model.
    """

    def __init__(self, leak: GradientLeak) -> None:
        self._leak = leak

    def __call__(self, images: Tensor) -> Tensor:
        """Return (B, D) for images (B, C, H, W).

        Raises:
            NotApplicable: the network has no last linear layer that is used once.
        """
        # Where layers draw: alike for all leaks, whichever is the first to trace the network.
        with seeded_layers(0):
            network = Network.of(self._leak)
        with seeded_layers(0):
            return network.double_features(images)
