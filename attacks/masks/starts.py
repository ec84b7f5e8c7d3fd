"""Random masks to anneal from, in kinds that reach different examples.

With F an orthonormal basis of the q that are orthogonal to those found, `Fᵀ S V` has rows spanned
by the inputs of the examples that are *not* found (the dual of "`δ_b = U q_b` is peeled off"). A
combination of these, sent forward through the layer, turns on about the units that its largest
example does: the fewer are missing, the nearer; of a single one, it is that example's input.

* **images**: a random combination, all directions of that space alike;
* **typical images**: one in which they are as large as in the gradient, as in images that are much
  alike; annealed less, as its mask is nearly right where few are missing or all are alike;
* **classes**: one that the gradient itself makes, `wᵀ G_w` with w what the layers above hand down
  for a random class, thinned out at random: examples of that class weigh most in it. Its mask and w
  together are the start.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch

from attacks.dense.network import FullyConnected
from attacks.masks.annealed import WARM, expected_masks
from attacks.masks.equation import MaskEquation
from attacks.masks.polish import Pair, beside
from attacks.victim.gradients import Array

STARTS_AT_ONCE = 16
"""Starts annealed at a time."""
CLASS_SHARE = 0.1
"""Of the units that a class's combination is made from."""
LIKELY_ON = 0.9
"""Probability that a unit is on where a combination of images turns it on."""


class Kind(IntEnum):
    """What starts are made from."""

    IMAGES = 0
    TYPICAL_IMAGES = 1
    CLASSES = 2


class Starts:
    """Draws masks to start from.

    Args:
        equation: of the layer with that index.
        network: ends with the last layer.
        index: of the layer.
        generator: draws.
    """

    def __init__(
        self,
        equation: MaskEquation,
        network: FullyConnected,
        index: int,
        generator: torch.Generator,
    ) -> None:
        self.equation, self.above = equation, network.layers[index + 1 :]
        self.generator = generator
        self.kept = network.kept[index] if network.kept else 1.0

    def draw(self, kind: Kind, found: list[Pair]) -> Array:
        """Return masks (N, D)."""
        frame = beside(found) if found else np.eye(self.equation.size)
        if kind is Kind.CLASSES:
            return self._of_classes(frame)
        return self._of_images(frame, is_typical=kind is Kind.TYPICAL_IMAGES)

    def of_last(self, found: list[Pair]) -> Array:
        """Return the mask of the one example that is missing, for both signs of its input."""
        equation = self.equation
        inputs = (beside(found).T * equation.values) @ equation.right
        outputs = inputs @ equation.outputs
        return np.asarray(np.vstack([outputs, -outputs]) > 0, dtype=np.float64)

    def _of_images(self, frame: Array, *, is_typical: bool) -> Array:
        equation = self.equation
        rest = (frame.T * equation.values) @ equation.right
        if not is_typical:
            rest = np.linalg.svd(rest, full_matrices=False)[2]
        inputs = self._normal(STARTS_AT_ONCE, len(rest)) @ rest
        if equation.source.has_bias:  # its own input is positive
            inputs *= np.where(inputs[:, -1:] < 0, -1, 1)
        return np.where(inputs @ equation.outputs > 0, LIKELY_ON * self.kept, 1 - LIKELY_ON)

    def _of_classes(self, frame: Array) -> Array:
        equation = self.equation
        w = self._handed_down()[:, equation.live] / equation.rows
        thin = w * (self._uniform(*w.shape) < CLASS_SHARE)
        inputs = (((thin @ equation.left) @ frame @ frame.T) * equation.values) @ equation.right
        masks = (inputs @ equation.outputs > 0).astype(np.float64)
        t = w @ equation.targets
        w = t @ equation.targets.T
        q = (np.where(masks > 0, self.kept, equation.low) * w) @ equation.left
        return expected_masks(equation, q, t, float(WARM[0]))

    def _handed_down(self) -> Array:
        """Return what comes down from the logits for random classes and masks, (N, m)."""
        last = self.above[-1].weights
        classes = torch.randint(len(last), (STARTS_AT_ONCE,), generator=self.generator).numpy()
        down = last.mean(axis=0) - last[classes]
        for layer in reversed(self.above[:-1]):
            down = (down * (self._uniform(*down.shape) < 0.5)) @ layer.weights
        return np.asarray(down)

    def _normal(self, *shape: int) -> Array:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).numpy()

    def _uniform(self, *shape: int) -> Array:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).numpy()
