"""The class of one example from the sign of the row sums of the last layer's gradient.

A. Wainakh et al., *User-Level Label Leakage from Gradients in Federated Learning*, PoPETs 2022,
arXiv 2105.09369: where the last layer's inputs x are never negative, row k of its gradient,
`(p − y) xᵀ`, sums to `(p_k − y_k) Σ x`; for a hard label only the true class's sum is negative.
"""

from dataclasses import dataclass

import torch

from attacks import GradientLeak, LabelAttack, LabelRecovery, Status
from attacks.network import Network
from attacks.types import NotApplicable, require_one_example


@dataclass(frozen=True)
class RowSum(LabelAttack):
    """Guess the class with the most negative row sum, as a one-hot label.

    A sign doesn't tell a hard label from a soft one, so the answer is never RECOVERED.
    """

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Sum the rows."""
        require_one_example(leak)
        network = Network(leak)
        name = f"{network.head_name}.weight"
        if name not in leak.gradients:
            raise NotApplicable(f"the gradient of the last layer, {name!r}, is missing")
        if not network.has_nonnegative_features():
            raise NotApplicable("the last layer's inputs may be negative, so the signs say nothing")
        sums = leak.gradients[name].detach().double().sum(dim=1)
        if not sums.isfinite().all() or not sums.any():
            raise NotApplicable("the last layer's gradient is zero or not finite")
        label = torch.zeros(1, len(sums), dtype=torch.float64)
        label[0, sums.argmin()] = 1
        return LabelRecovery(
            Status.NOT_IDENTIFIABLE,
            "the row sums give the class; that the label is hard is assumed",
            labels=label,
            statuses=(Status.NOT_IDENTIFIABLE,),
            batch_size=1,
        )
