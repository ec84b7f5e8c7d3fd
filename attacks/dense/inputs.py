"""The first layer's inputs behind a gradient, and what is uncertain about them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from attacks.answers import ExampleLabel, Status
from attacks.victim.pixel_map import PixelMap

UNCERTAIN = "without biases the image's scale is as uncertain as the label recovery"
OPEN_IMAGE = (
    "without biases the image is known up to a positive factor, as its label isn't determined: it "
    "is shown with the largest at which its pixels stay in [0, 1]"
)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a way down the network gives for each of B examples.

    Args:
        a: (B, n), the first layer's inputs; rows of NaN where there is none.
        noise: (B,), root mean square error that noise leaves in their entries.
        features: (B, D), what the network has to make of them; rows of NaN where unknown.
        scale_bar: (B,), relative error bars of their scales; NaN where the images don't tell.
        reasons: why an example isn't identifiable, None where it is.
    """

    a: Tensor
    noise: Tensor
    features: Tensor
    scale_bar: Tensor
    reasons: tuple[str | None, ...]

    def within_range(
        self, labels: Sequence[ExampleLabel], inverse: PixelMap, sigmas: float
    ) -> Inputs:
        """Return inputs without a bias, scaled by what pixels can be where labels don't tell.

        [ours] The client's own factor is at most the largest at which pixels stay in [0, 1]; with a
        black background, say, it is that. Where no label is known it is the estimate, and where one
        is but isn't RECOVERED, it bounds the label's.

        Args:
            labels: of the examples.
            inverse: from inputs to pixels.
            sigmas: standard deviations of noise by which pixels may leave the range.
        """
        a, noise, features = self.a.clone(), self.noise.clone(), self.features.clone()
        reasons = list(self.reasons)
        largest = inverse.largest_factors(a, sigmas * noise).tolist()
        for row, (label, most) in enumerate(zip(labels, largest, strict=False)):
            if label.status is Status.RECOVERED or not 0 < most < math.inf:
                continue
            if label.label is None and reasons[row] == UNCERTAIN:
                reasons[row] = OPEN_IMAGE
            factor = most if label.label is None else min(most, 1.0)
            for part in (a, noise, features):
                part[row] *= factor
        return dataclasses.replace(
            self, a=a, noise=noise, features=features, reasons=tuple(reasons)
        )
