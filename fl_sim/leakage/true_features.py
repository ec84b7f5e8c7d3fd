"""The features that a recovered one is compared with: what the last layer sees of true images."""

from __future__ import annotations

from torch import Tensor

from attacks import GradientLeak
from attacks.victim.network import Network


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
        return Network.of(self._leak).double_features(images)
