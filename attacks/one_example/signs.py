"""One example's class from the signs of the last layer's gradient.

[ours, for labels that may be smoothed; iDLG's rule, B. Zhao, K. Mopuri, H. Bilen, arXiv 2001.02610,
for hard ones] Of `∂L/∂W = (p − y) xᵀ` the signs are `sign(p − y) sign(x)ᵀ`. Of a hard label `p − y`
is below 0 for its class alone. Of a smoothed one it may be above 0 for it, where p is above
1 − ε + ε/K, and below for others, where p is below ε/K: so signs never prove its class, and where
one row alone is below 0 they all but do.
"""

from __future__ import annotations

import numpy as np
import torch

from attacks.answers import Augmentation, ExampleLabel, LabelRecovery, Status
from attacks.facts import SignsOnly
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.gradients import Array, as_numpy, read_head
from attacks.victim.network import Network
from attacks.victim.require import require_one_step


def shows_signs(leak: GradientLeak) -> bool:
    """Say whether signs, and one size for each tensor, are told to be all that was sent."""
    return any(isinstance(fact, SignsOnly) for fact in leak.knowledge)


def label_of_signs(leak: GradientLeak, network: Network) -> LabelRecovery:
    """Return the label of one example whose gradient's signs were sent.

    Raises:
        NotApplicable: several steps, two classes, or signs that aren't one example's.
    """
    require_one_step(leak)
    rows = _signs_of_rows(leak, network)
    below = np.flatnonzero(rows < 0)
    if len(below) != 1 or not (rows != 0).all():
        raise NotApplicable(
            f"{len(below)} of {len(rows)} rows of the last layer's gradient are below 0: one class "
            "would leave one"
        )
    told = leak.told
    smoothing = told.smoothing_of_classes or 0.0
    label = torch.full((len(rows),), smoothing / len(rows), dtype=torch.float64)
    label[int(below[0])] += 1 - smoothing
    if told.type == "hard":
        found = ExampleLabel(Status.RECOVERED, label=label, augmentation=Augmentation("hard"))
        return LabelRecovery.of([found])
    reason = "signs show the class that lies below its prediction, not what else its label holds"
    if told.type == "label-smoothing":
        reason = (
            "signs show the class unless the network is surer of another than a smoothed label is"
        )
    return LabelRecovery.of([ExampleLabel(Status.NOT_IDENTIFIABLE, reason, label=label)])


def _signs_of_rows(leak: GradientLeak, network: Network) -> Array:
    """Return sign(p − y), (K,).

    Raises:
        NotApplicable: signs aren't a product of rows' and columns', or nothing tells theirs apart.
    """
    weight, bias = read_head(leak, network)
    signs = np.sign(as_numpy(weight).astype(np.float64))
    live = signs.any(axis=0)
    first = signs[:, live.argmax()]
    columns = first @ signs
    rank_one = np.outer(first, np.sign(columns))
    if not live.any() or not (signs == rank_one).all():
        raise NotApplicable(
            "the signs of the last layer's gradient aren't those of one example: rows differ"
        )
    if bias is not None:
        rows = np.sign(as_numpy(bias).astype(np.float64))
        if not (np.abs(rows @ first) == np.abs(rows).sum()):
            raise NotApplicable("the signs of the last layer's bias aren't those of its weight")
        return np.asarray(rows)
    if network.has_nonnegative_features():
        return np.asarray(first)
    if len(first) == 2:
        raise NotApplicable("of two classes, signs don't show which is which without a bias")
    return np.asarray(first if (first < 0).sum() == 1 else -first)
