"""The strongest image attack that applies to a leak. Ours.

The rule, the same for every leak:

1. The exact attacks, in the order `analytic`, `r-gap`, `relu-fit`, each asked for all it covers by
   itself. The first one that recovers all images is taken.
2. Else the first one that recovers some.
3. Else the search: `feature-matching` where the label attack has every example's label and feature,
   `inverting-gradients` where it doesn't. Where an exact attack gave images that it doesn't vouch
   for, as under noise, the search sets out from the first such, in steps of a tenth (whole ones
   would first undo them); of these images and the search's the ones are taken whose gradient is
   nearer to the one that was sent.

The answer's `method` names the one that was taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from attacks.answers import LabelRecovery, Reconstruction, Status
from attacks.facts import Fact
from attacks.images.analytic import AnalyticInversion
from attacks.images.feature_matching import FeatureMatching
from attacks.images.inverting_gradients import InvertingGradients
from attacks.images.r_gap import RGAP
from attacks.images.relu_fit import ReLUFit
from attacks.types import GradientLeak, ImageAttack, NotApplicable

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
        device: of the search: "auto", a GPU where there is one, "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        ValueError: a value is out of its range.
    """

    uses: ClassVar[tuple[type[Fact], ...]] = tuple(
        dict.fromkeys(fact for attack in EXACT.values() for fact in attack.uses)
    )
    reach: ClassVar[str] = "whatever one of the others works on"
    iterations: int = 4800
    restarts: int = 1
    device: str = "auto"

    is_long: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._searches()

    def reconstruct(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        """Follow the rule."""
        partial: Reconstruction | None = None
        unvouched: Reconstruction | None = None
        for name, attack in EXACT.items():
            answer = replace(attack()(leak, labels, generator=generator), method=name)
            if answer.status is Status.RECOVERED:
                return answer
            if partial is None and Status.RECOVERED in answer.statuses:
                partial = answer
            if unvouched is None and answer.images is not None:
                unvouched = answer
        if partial is not None:
            return partial
        if unvouched is not None:
            return self._onwards(leak, labels, unvouched, generator)
        searches = self._searches()
        answer = searches["feature-matching"](leak, labels, generator=generator)
        if answer.status is not Status.NOT_APPLICABLE:
            return replace(answer, method="feature-matching")
        answer = searches["inverting-gradients"](leak, labels, generator=generator)
        return replace(answer, method="inverting-gradients")

    def _onwards(
        self,
        leak: GradientLeak,
        labels: LabelRecovery,
        start: Reconstruction,
        generator: torch.Generator,
    ) -> Reconstruction:
        """Search on from an exact attack's images, and keep them where they fit better."""
        assert start.images is not None
        for name, search in self._searches().items():
            smaller = replace(search, lr=search.lr / 10)
            try:
                found = smaller.onwards(leak, labels, start.images, generator=generator)
            except NotApplicable:
                continue
            still = replace(search, iterations=1, restarts=1)
            own = still.onwards(leak, labels, start.images, generator=generator)
            if _misfit(own) <= _misfit(found):
                return replace(start, gradient_evaluations=found.gradient_evaluations)
            return replace(found, method=name)
        return start

    def _searches(self) -> dict[str, InvertingGradients]:
        shared: dict[str, Any] = {
            "iterations": self.iterations,
            "restarts": self.restarts,
            "device": self.device,
        }
        return {
            "feature-matching": FeatureMatching(**shared, labels="given"),
            "inverting-gradients": InvertingGradients(**shared),
        }


def _misfit(found: Reconstruction) -> float:
    """Return how much of the gradient's size a search's images leave; infinite without any."""
    residuals = [example.residual for example in found.examples]
    return max((math.inf if part is None else part for part in residuals), default=math.inf)
