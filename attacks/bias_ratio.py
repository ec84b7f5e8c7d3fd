"""Soft label of one example from the ratio of weight and bias gradients of one row.

The well-known closed form for a last layer with a bias: `∂L/∂W = (p − y) xᵀ` and `∂L/∂b = p − y`,
so that `x = (∂L/∂W)_r / (∂L/∂b)_r` for any row r and `y = softmax(W x + b) − ∂L/∂b`. See Wang,
Liang, He, ICLR 2024, arXiv 2402.03124, section 4.1, for labels that aren't hard.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax

from attacks.label_bars import unknowns
from attacks.label_fit import Root, fit_label, label_models
from attacks.label_verdict import decide
from attacks.network import Network
from attacks.second_example import one_example, without_second_example
from attacks.types import (
    GradientLeak,
    LabelAttack,
    LabelRecovery,
    NotApplicable,
    Status,
    require_one_example,
    require_values,
)


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

    tolerance: float = 1e-2

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Apply the formula, then test its answer."""
        require_one_example(leak)
        require_values(leak)
        network = Network(leak)
        if network.head.bias is None:
            raise NotApplicable("the last layer has no bias")
        layer = one_example(leak, network)
        if layer is None:
            raise NotApplicable("the gradient holds several examples; this attack works on one")
        gradient, bias_gradient = (
            leak.gradients[name].double().numpy() for name in network.head_gradients(leak)
        )
        row = int(np.argmax(np.abs(bias_gradient)))
        x = gradient[row] / bias_gradient[row]
        weight = network.head.weight.detach().double().numpy()
        bias = network.head.bias.detach().double().numpy()
        label = softmax(weight @ x + bias) - bias_gradient

        root = Root(1 / layer.g[-1], layer.g[-1])
        models = label_models(leak.knowledge)
        fits = [fit for model in models if (fit := fit_label(layer, model, root))]
        verdict = decide(layer, [fits], unknown=unknowns(leak), tolerance=self.tolerance)
        recovered = verdict.status is Status.RECOVERED
        assert verdict.labels is not None
        distance = float(np.abs(label - verdict.labels[0].numpy()).max())
        if recovered and distance > self.tolerance / 2:
            reason = f"one row leaves the label off by {distance:.2g} from what all rows say"
            verdict = verdict.without_claim(reason)
        elif recovered:
            verdict = without_second_example(verdict, leak, network)
        return dataclasses.replace(
            verdict,
            labels=torch.from_numpy(label)[None],
            features=torch.from_numpy(x)[None],
            candidates=None,
        )
