"""Feature matching: the recovered feature and soft label as further terms of gradient matching.

Y. Wang, J. Liang, R. He, *Towards Eliminating Hard Label Constraints in Gradient Inversion
Attacks*, ICLR 2024, arXiv 2402.03124, section 4: with the last layer's input x̂ and the label ŷ that
the label attack recovers,

    x* = argmin  d(∇L(f(x), ŷ), g) + μ TV(x) + μ_f ‖h(x) − x̂‖² / ‖x̂‖².

The distance d, total variation and optimiser are those of `inverting-gradients`. The paper leaves
the weight μ_f open. Measured (`fl-sim bench images --only image_matching`): where the search gets
anywhere, the gain grows to μ_f = 0.1 or 1 and stays to 100, and how much it is the feature's error
decides; where it doesn't, as on an untrained LeNet in a few iterations, no weight helps.

Differences from the paper: a feature whose label isn't known comes as a direction (its length goes
with the label), and h(x) is compared in direction. Of several examples, the term is the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks.answers import LabelRecovery
from attacks.images.inverting_gradients import InvertingGradients
from attacks.matching.attack import Setup
from attacks.matching.objectives import FeatureDistance
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.differentiable import DifferentiableVictim


@dataclass(frozen=True)
class FeatureMatching(InvertingGradients):
    """Match the gradient's direction and the recovered feature, and keep images smooth.

    The loss is assumed to be the mean cross-entropy.

    Further arguments, and what an answer says: those of `InvertingGradients`.

    Args:
        feature_weight: μ_f, at least 0.

    Raises:
        ValueError: a value is out of its range.
    """

    reach: ClassVar[str] = "any network whose last feature a label attack recovers"
    feature_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.feature_weight >= 0:
            raise ValueError(f"feature_weight must be at least 0, found {self.feature_weight}")

    def setup(
        self, leak: GradientLeak, labels: LabelRecovery, victim: DifferentiableVictim
    ) -> Setup:
        """Add the feature's distance.

        Raises:
            NotApplicable: the label attack doesn't have every example's feature.
        """
        features = labels.features
        if features is None or not features.isfinite().all():
            raise NotApplicable(
                "the label attack didn't recover every example's feature; inverting-gradients does "
                "without"
            )
        if leak.local_steps > 1:
            raise NotApplicable(
                f"over {leak.local_steps} local steps an example has several features; "
                "inverting-gradients does without"
            )
        term = FeatureDistance(self.feature_weight, victim.head_name)
        base = super().setup(leak, labels, victim)
        has_length = torch.tensor([one.label is not None for one in labels.examples])
        return Setup(
            base.distance,
            (*base.priors, term),
            (victim.head_name,),
            features.detach(),
            has_length.to(features),
        )
