"""Soft label of one example from the ratio of weight and bias gradients of one row.

The well-known closed form for a last layer with a bias: `∂L/∂W = (p − y) xᵀ` and `∂L/∂b = p − y`,
so that `x = (∂L/∂W)_r / (∂L/∂b)_r` for any row r and `y = softmax(W x + b) − ∂L/∂b`. See Wang,
Liang, He, ICLR 2024, arXiv 2402.03124, section 4.1, for labels that aren't hard.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from attacks.answers import LabelRecovery, Status, without_claim
from attacks.batch.second_example import one_example, without_second_example
from attacks.facts import LABELS, SIZES, Fact
from attacks.labels.soft_label import fits_at
from attacks.numerics.softmax import softmax
from attacks.one_example.bars import unknowns
from attacks.one_example.fit import Root
from attacks.one_example.label_model import label_models
from attacks.one_example.verdict import decide
from attacks.types import GradientLeak, LabelAttack, NotApplicable
from attacks.victim.gradients import as_double, read_head
from attacks.victim.network import Network
from attacks.victim.require import require_one_example, require_values


@dataclass(frozen=True)
class BiasRatio(LabelAttack):
    """Read the label off the row with the largest bias gradient; a baseline for `soft-label`.

    The loss is assumed to be the cross-entropy, its gradient unscaled.

    The formula alone accepts anything, a scaled or noisy gradient too. So the status comes from
    `soft-label`'s test that an augmented label explains all of the gradient; label and feature are
    the formula's own.

    Args:
        tolerance: L∞ error of the label that RECOVERED stays below, in (0, 1).
    """

    reach: ClassVar[str] = "one local step of one example, with a bias in the last layer"
    uses: ClassVar[tuple[type[Fact], ...]] = (*LABELS, *SIZES)
    tolerance: float = 1e-2

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Apply the formula, then test its answer."""
        require_one_example(leak)
        require_values(leak)
        network = Network.of(leak)
        if network.head.bias is None:
            raise NotApplicable("the last layer has no bias")
        problem = one_example(leak, network)
        if problem is None:
            raise NotApplicable("the gradient holds several examples; this attack works on one")
        weight_gradient, bias_part = read_head(leak, network)
        assert bias_part is not None
        gradient, bias_gradient = as_double(weight_gradient), as_double(bias_part)
        row = int(np.argmax(np.abs(bias_gradient)))
        x = gradient[row] / bias_gradient[row]
        z = as_double(network.head.weight) @ x + as_double(network.head.bias)
        label = softmax(z) - bias_gradient

        root = Root(1 / problem.g[-1], problem.g[-1])
        verdict = decide(
            problem,
            [fits_at(problem, label_models(leak.told), root)],
            unknown=unknowns(leak),
            tolerance=self.tolerance,
        )
        if verdict.status is Status.RECOVERED:
            verdict = without_second_example(verdict, leak, network)
        example = dataclasses.replace(
            verdict.examples[0],
            label=torch.from_numpy(label),
            feature=torch.from_numpy(x),
            candidates=None,
        )
        if verdict.status is Status.RECOVERED:
            whole = verdict.examples[0].label
            assert whole is not None
            distance = float(np.abs(whole.numpy() - label).max())
            if distance > self.tolerance / 2:
                reason = f"one row leaves the label off by {distance:.2g} from what all rows say"
                example = without_claim(example, reason)
        return LabelRecovery.of([example], gradient_scale=verdict.gradient_scale)
