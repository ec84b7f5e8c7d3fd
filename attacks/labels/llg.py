"""Class counts from signs and sizes of the rows of the last layer's gradient.

A. Wainakh et al., *User-Level Label Leakage from Gradients in Federated Learning*, PoPETs 2022,
arXiv 2105.09369, section 4, algorithm 1. Of the row sums `g_k = Σ_j G_kj`, a negative one shows
that class k is there; one example of it adds the impact m to g_k, on top of an offset s_k that the
others leave. Every class with g_k < 0 counts once and gives up its m; the rest of the N examples
go, one at a time, to the class whose `g_k − s_k` is lowest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from attacks.answers import LabelRecovery
from attacks.counts.head_gradient import DUMMIES, Auxiliary, HeadGradient, as_auxiliary
from attacks.types import GradientLeak, LabelAttack
from attacks.victim.gradients import Array


@dataclass(frozen=True)
class LLG(LabelAttack):
    """Count the examples of each class, label by label.

    The loss is assumed to be the mean cross-entropy.

    Args:
        variant: where impact and offset come from: "llg" takes `m = (1 + 1/K) Σ_{g_k<0} g_k / N`
            and no offset, from the gradient alone; "llg*" measures both on random images, "llg+" on
            auxiliary ones, in batches of one class at a time.
        auxiliary: labelled images, or the path of an `.npz` file, for "llg+".

    Raises:
        ValueError: another variant, or "llg+" without auxiliary images.

    Note:
        The paper draws ten batches for each class; here one set of images takes every label, which
        is the mean over many such batches.
    """

    reach: ClassVar[str] = (
        "batches and several local steps with hard labels, features never negative"
    )
    variant: Literal["llg", "llg*", "llg+"] = "llg"
    auxiliary: Auxiliary | None = None

    def __post_init__(self) -> None:
        if self.variant not in ("llg", "llg*", "llg+"):
            raise ValueError(f"variant must be 'llg', 'llg*' or 'llg+', found {self.variant!r}")
        object.__setattr__(self, "auxiliary", as_auxiliary(self.auxiliary))
        if (self.variant == "llg+") != (self.auxiliary is not None):
            raise ValueError("auxiliary images belong to the variant 'llg+', which needs them")

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Give out the N examples one at a time."""
        head = HeadGradient.of(leak)
        examples = head.require_examples()
        rows, classes = head.row_sums, len(head.gradient)
        if self.variant == "llg":
            impact, offset = float(rows[rows < 0].sum()) / examples, np.zeros(classes)
        else:
            impact, offset = self._measure(head, examples, generator)
        mass = give_out(rows, examples, impact * (1 + 1 / classes), offset)
        return head.answer(mass, "labels are hard, features not negative")

    def _measure(
        self, head: HeadGradient, examples: int, generator: torch.Generator
    ) -> tuple[float, Array]:
        """Return one example's impact on its own class's row sum, and the others' offsets."""
        head.require_same_statistics()
        classes = len(head.gradient)
        if self.auxiliary is None:
            images = torch.rand(DUMMIES, *head.leak.input_shape, generator=generator)
            members = [np.arange(DUMMIES)] * classes
        else:
            self.auxiliary.require_fit(head.leak, classes)
            images, labels = self.auxiliary.images, self.auxiliary.labels.numpy()
            members = [np.flatnonzero(labels == k) for k in range(classes)]
        features = head.features(images)
        p = head.probabilities(features)
        sums = features.sum(axis=1, keepdims=True)
        # sums_of[i, k]: the row sum of class k in a batch of class i alone.
        present = [k for k in range(classes) if len(members[k])]
        sums_of = np.stack([(p[members[k]] * sums[members[k]]).mean(axis=0) for k in present])
        own = np.array([sums[members[k]].mean() for k in present])
        impact = np.mean([sums_of[i, k] - own[i] for i, k in enumerate(present)]) / examples
        is_other = np.ones_like(sums_of)
        is_other[np.arange(len(present)), present] = 0
        offset = (sums_of * is_other).sum(axis=0) / np.maximum(is_other.sum(axis=0), 1)
        return float(impact), offset


def give_out(rows: Array, examples: int, impact: float, offset: Array) -> Array:
    """Count the examples of each class: the paper's algorithm 1.

    Args:
        rows: (K,), the row sums g.
        examples: N.
        impact: m, of one example on its own class's row sum.
        offset: (K,), s.

    Returns:
        (K,) counts that sum to N.
    """
    counts, left = np.zeros(len(rows)), rows - offset
    certain = np.argsort(rows, kind="stable")[: min(examples, int((rows < 0).sum()))]
    counts[certain] += 1
    left[certain] -= impact
    for _ in range(examples - len(certain)):
        lowest = int(left.argmin())
        counts[lowest] += 1
        left[lowest] -= impact
    return counts
