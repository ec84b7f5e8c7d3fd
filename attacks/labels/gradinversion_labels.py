"""The classes of a batch by the column minimum of the last layer's gradient.

H. Yin et al., *See through Gradients: Image Batch Recovery via GradInversion*, CVPR 2021, arXiv
2104.07586, section 3.1, equation 5: where features aren't negative, an entry `G_kj < 0` shows that
class k is in the batch, so that the N classes with the lowest `min_j G_kj` are taken, once each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from attacks.answers import LabelRecovery
from attacks.counts.head_gradient import HeadGradient
from attacks.types import GradientLeak, LabelAttack, NotApplicable


@dataclass(frozen=True)
class GradInversionLabels(LabelAttack):
    """Take the N classes whose gradients have the lowest entries, each as one example's.

    The loss is assumed to be the mean cross-entropy.
    """

    reach: ClassVar[str] = "one local step of a batch with hard labels that repeats no class"

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Sort the classes by their lowest entry."""
        head = HeadGradient.of(leak)
        examples = head.require_examples()
        classes = len(head.gradient)
        if examples > classes:
            raise NotApplicable(
                f"{examples} examples of {classes} classes repeat a class; this attack needs that "
                "none does"
            )
        lowest = np.argsort(head.gradient.min(axis=1), kind="stable")[:examples]
        mass = np.zeros(classes)
        mass[lowest] = 1
        return head.answer(mass, "labels are hard, no class repeats")
