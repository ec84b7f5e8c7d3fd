"""The class of one example from the sign of the row sums of the last layer's gradient.

A. Wainakh et al., *User-Level Label Leakage from Gradients in Federated Learning*, PoPETs 2022,
arXiv 2105.09369: where the last layer's inputs x are never negative, row k of its gradient,
`(p − y) xᵀ`, sums to `(p_k − y_k) Σ x`; for a hard label only the true class's sum is negative.
"""

from dataclasses import dataclass

import torch

from attacks import ExampleLabel, GradientLeak, LabelAttack, LabelRecovery, NotApplicable, Status
from attacks.victim.gradients import read_head
from attacks.victim.network import Network
from attacks.victim.require import require_one_example


@dataclass(frozen=True)
class RowSum(LabelAttack):
    """Guess the class with the most negative row sum, as a one-hot label.

    A sign doesn't tell a hard label from a soft one, so the answer is never RECOVERED.
    """

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Sum the rows."""
        require_one_example(leak)
        network = Network.of(leak)
        weight, _ = read_head(leak, network)
        if not network.has_nonnegative_features():
            raise NotApplicable("the last layer's inputs may be negative, so the signs say nothing")
        sums = weight.double().sum(dim=1)
        label = torch.zeros(len(sums), dtype=torch.float64)
        label[sums.argmin()] = 1
        reason = "the row sums give the class; that the label is hard is assumed"
        return LabelRecovery.of([ExampleLabel(Status.NOT_IDENTIFIABLE, reason, label)])
