"""The class of one example by the sign rule.

B. Zhao, K. R. Mopuri, H. Bilen, *iDLG: Improved Deep Leakage from Gradients*, 2020, arXiv
2001.02610, section 3: for a hard label the true class's row of the last layer's gradient is the one
whose products with all other rows aren't positive, since p − y is negative for that class alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import one_hot

from attacks.answers import Augmentation, ExampleLabel, LabelRecovery, Status
from attacks.types import GradientLeak, LabelAttack
from attacks.victim.gradients import read_head
from attacks.victim.network import Network
from attacks.victim.require import require_one_example


@dataclass(frozen=True)
class IDLG(LabelAttack):
    """Find the class and assume that the label is hard; the baseline that soft labels defeat.

    The loss is assumed to be a cross-entropy, on any scale; of its gradient, signs will do.

    Note:
        The sign rule can't tell a hard label from a smoothed one, so the status is never RECOVERED,
        which would claim the label's values; the answer's label is the one-hot guess.
    """

    reach: ClassVar[str] = "one local step of one example with a hard label"

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Compare the rows of the last layer's gradient."""
        require_one_example(leak)
        gradient = read_head(leak, Network.of(leak))[0].double()
        products = gradient @ gradient.T
        products.fill_diagonal_(-torch.inf)
        opposed = (products <= 0).all(dim=1) & (gradient != 0).any(dim=1)
        found = opposed.nonzero().flatten()
        if len(found) != 1:
            example = ExampleLabel(
                Status.NOT_IDENTIFIABLE,
                f"{len(found)} classes oppose all others: the label isn't hard, or noise hides it",
            )
        else:
            example = ExampleLabel(
                Status.NOT_IDENTIFIABLE,
                "the sign rule gives the class; a hard label and a cross-entropy are assumed",
                label=one_hot(found[0], len(gradient)).double(),
                augmentation=Augmentation("hard"),
            )
        return LabelRecovery.of([example])
