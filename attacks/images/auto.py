"""The strongest image attack that applies to a leak. Ours.

The rule, the same for every leak:

1. The exact attacks, in the order `analytic`, `r-gap`, `relu-fit`, each asked for all it covers by
   itself. The first one that recovers all images is taken.
2. Else the first one that recovers some.
3. Else the search: `feature-matching` where the label attack has every example's label and feature,
   `inverting-gradients` where it doesn't.

The answer's `method` names the one that was taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from attacks.answers import LabelRecovery, Reconstruction, Status
from attacks.facts import Fact
from attacks.images.analytic import AnalyticInversion
from attacks.images.feature_matching import FeatureMatching
from attacks.images.inverting_gradients import InvertingGradients
from attacks.images.r_gap import RGAP
from attacks.images.relu_fit import ReLUFit
from attacks.types import GradientLeak, ImageAttack

EXACT: dict[str, type[ImageAttack]] = {
    "analytic": AnalyticInversion,
    "r-gap": RGAP,
    "relu-fit": ReLUFit,
}
"""Exact attacks by name, in the order in which they are asked."""


@dataclass(frozen=True)
class Auto(ImageAttack):
    """Ask the exact attacks first, and search only where none of them recovers an image.

    The loss is assumed to be the mean cross-entropy.

    Args:
        iterations: of the search, at least 1.
        restarts: of the search, at least 1.

    Raises:
        ValueError: a value is out of its range.
    """

    uses: ClassVar[tuple[type[Fact], ...]] = tuple(
        dict.fromkeys(fact for attack in EXACT.values() for fact in attack.uses)
    )
    reach: ClassVar[str] = "whatever one of the others works on"
    iterations: int = 4800
    restarts: int = 1

    is_long: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._searches()

    def reconstruct(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        """Follow the rule."""
        partial: Reconstruction | None = None
        for name, attack in EXACT.items():
            answer = replace(attack()(leak, labels, generator=generator), method=name)
            if answer.status is Status.RECOVERED:
                return answer
            if partial is None and Status.RECOVERED in answer.statuses:
                partial = answer
        if partial is not None:
            return partial
        searches = self._searches()
        answer = searches["feature-matching"](leak, labels, generator=generator)
        if answer.status is not Status.NOT_APPLICABLE:
            return replace(answer, method="feature-matching")
        answer = searches["inverting-gradients"](leak, labels, generator=generator)
        return replace(answer, method="inverting-gradients")

    def _searches(self) -> dict[str, ImageAttack]:
        long, starts = self.iterations, self.restarts
        return {
            "feature-matching": FeatureMatching(iterations=long, restarts=starts, labels="given"),
            "inverting-gradients": InvertingGradients(iterations=long, restarts=starts),
        }
