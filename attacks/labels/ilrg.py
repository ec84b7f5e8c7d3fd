"""Class counts from class-wise mean features and the last layer's bias gradient.

K. Ma, Y. Sun, J. Cui, D. Li, Z. Guan, J. Liu, *Instance-wise Batch Label Restoration via Gradients
in Federated Learning*, ICLR 2023, section 3. The rows of the last layer's gradients give a mean
feature for each class, `x̄_k = G_k / g_k`, that feature gives its probabilities
`p̄_k = softmax(W x̄_k + b)`, and the counts n solve, by the Moore-Penrose inverse,

    Σ_k n_k = N,      Σ_j n_j (p̄_jk − δ_jk) = N g_k    for every class k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from attacks.answers import LabelRecovery
from attacks.counts.head_gradient import HeadGradient
from attacks.numerics.softmax import softmax
from attacks.types import GradientLeak, LabelAttack, NotApplicable
from attacks.victim.gradients import Array

LARGEST = 1e10
"""Bound of a feature's size, where a bias gradient is nearly zero."""


@dataclass(frozen=True)
class ILRG(LabelAttack):
    """Count the examples of each class by one linear system; needs a bias.

    The loss is assumed to be the mean cross-entropy.

    Note:
        The paper's code repairs rounded counts that don't sum to N where their rounding error is
        largest, and in one branch changes nearly all classes instead; here that is mended.
    """

    reach: ClassVar[str] = (
        "batches and several local steps with hard labels and a bias in the last layer"
    )

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Solve for the counts and round them."""
        head = HeadGradient.of(leak)
        examples = head.require_examples()
        if head.bias_gradient is None:
            raise NotApplicable("the last layer has no bias gradient, which this attack divides by")
        g = head.bias_gradient
        divisor = np.where(g == 0, np.finfo(float).tiny, g)[:, None]
        with np.errstate(over="ignore"):
            features = np.clip(head.gradient / divisor, -LARGEST, LARGEST)
        p = softmax(features @ head.weights.T + head.biases)
        system = np.vstack([np.ones(len(g)), p.T - np.eye(len(g))])
        counts = np.linalg.pinv(system) @ np.concatenate([[1.0], g]) * examples
        return head.answer(
            _rounded(counts, examples),
            "labels are hard, features of one class alike",
        )


def _rounded(values: Array, examples: int) -> Array:
    """Round to counts of at least 0, and change those that rounding moved most until they fit N."""
    counts = np.clip(np.round(values), 0, examples)
    while (excess := int(counts.sum()) - examples) != 0:
        sign = 1 if excess > 0 else -1
        order = np.argsort(-sign * (counts - values), kind="stable")
        movable = order[counts[order] > 0] if excess > 0 else order
        counts[movable[: abs(excess)]] -= sign
    return counts
