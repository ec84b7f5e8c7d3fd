"""How many examples of each class are in a batch, by the signs of the last layer's gradient.

[ours] Of `∂L/∂W_kj = (1/B) Σ_b (p_bk − y_bk) x_bj`, with x_bj ≥ 0 as after a ReLU and labels of one
class each, smoothed by ε, an entry is below 0 where class k's own share of a feature is large:

    Σ_{b of k} x_bj / Σ_b x_bj > θ_k = (p_k − ε/K) / (1 − ε).

Of a class that isn't there none is. Of n among B examples whose features are independent and have
gamma distributions of the shape κ, that share has the distribution Beta(nκ, (B − n)κ), so that of a
row the part `1 − I_θ(nκ, (B − n)κ)` is below 0, I the regularised incomplete beta function. κ and
the n, which sum to B, are those that fit all rows best. p is that of random images: the guess is as
good as logits are alike for all images, as before training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betainc

from attacks.answers import ExampleLabel, LabelRecovery, Status
from attacks.numerics.softmax import softmax
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.gradients import Array, as_double, read_head
from attacks.victim.network import Network
from attacks.victim.require import require_one_step

SHAPES = np.geomspace(0.05, 20.0, 60)
"""κ that are tried: of features that are mostly zero, to those that hardly differ."""
SHARE_STD = 0.05
"""By how much a row's share of entries below 0 is off, of some hundred live units."""
MOST_OFF = 2.0
"""Squares of that, for each class, up to which counts explain the rows."""
MOST_COUNTED = 256
"""Examples in a batch, at most: pairs of counts are gone through."""
GUESSED = (
    "signs show how many examples of each class there are, by a model of features, and not which "
    "example is of which"
)


@dataclass(frozen=True, eq=False)
class Counts:
    """Examples of each class.

    Args:
        counts: n, (K,), whole numbers that sum to B.
        off: sum of squares of what rows are off, in standard deviations, for each class.
    """

    counts: Array
    off: float


def labels_by_sign_counts(leak: GradientLeak, network: Network) -> LabelRecovery:
    """Return the labels of a batch whose gradient's signs were sent, in no order.

    Args:
        leak: that is told to hold signs alone.
        network: a view of its model.

    Raises:
        NotApplicable: several steps, an untold or too large number of examples, labels of more than
            one class, features of both signs, or rows that no counts explain.
    """
    require_one_step(leak)
    batch, told = leak.batch_size, leak.told
    if batch is None or batch > MOST_COUNTED:
        raise NotApplicable(
            f"classes are counted by signs in batches of up to {MOST_COUNTED} examples, found "
            f"{batch or 'an unknown number'}"
        )
    if told.type not in (None, "hard", "label-smoothing"):
        raise NotApplicable("classes are counted by signs where labels are of one class each")
    if not network.has_nonnegative_features():
        raise NotApplicable(
            "classes are counted by signs where the last layer's inputs are never negative, as "
            "after a ReLU"
        )
    signs = np.sign(as_double(read_head(leak, network)[0]))
    live = signs.any(axis=0)
    if not live.any():
        raise NotApplicable("the last layer's gradient is zero")
    smoothing = told.smoothing_of_classes or 0.0
    classes = len(signs)
    p = softmax(as_double(network.head(network.probed_features))).mean(axis=0)
    limits = np.clip((p - smoothing / classes) / max(1 - smoothing, 1e-9), 1e-3, 1 - 1e-3)
    found = class_counts((signs[:, live] < 0).mean(axis=1), limits, batch)
    if not found.off <= MOST_OFF:
        raise NotApplicable(
            f"the shares of the last layer's entries below 0 are off those of any counts by "
            f"{found.off:.2g} variances for each class, more than {MOST_OFF:g}: logits differ too "
            "much between images, as after training"
        )
    labels = torch.full((batch, classes), smoothing / classes, dtype=torch.float64)
    own = np.repeat(np.arange(classes), found.counts.astype(int))
    labels[torch.arange(batch), torch.from_numpy(own)] += 1 - smoothing
    return LabelRecovery.of(
        [ExampleLabel(Status.NOT_IDENTIFIABLE, GUESSED, label=label) for label in labels]
    )


def class_counts(shares: Array, limits: Array, batch: int) -> Counts:
    """Return the counts, of sum B, that explain the rows' shares of entries below 0 best.

    Args:
        shares: (K,), in [0, 1].
        limits: θ, (K,), in (0, 1).
        batch: B.

    Example:
        >>> class_counts(np.array([0.0, 0.5, 0.5]), np.full(3, 0.5), 2).counts
        array([0., 1., 1.])
    """
    tried = [_of_shape(shares, limits, batch, float(κ)) for κ in SHAPES]
    return min(tried, key=lambda one: one.off)


def _of_shape(shares: Array, limits: Array, batch: int, κ: float) -> Counts:
    n = np.arange(1, batch)
    expected = np.zeros((len(shares), batch + 1))
    expected[:, -1] = 1.0
    expected[:, 1:-1] = 1 - betainc(n * κ, (batch - n) * κ, limits[:, None])
    cost = ((shares[:, None] - expected) / SHARE_STD) ** 2
    # The least sum of costs over the first classes, for each sum of their counts.
    sums = np.arange(batch + 1)[:, None] - np.arange(batch + 1)
    least, chosen = np.where(np.arange(batch + 1) == 0, 0.0, np.inf), []
    for row in cost:
        before = np.where(sums >= 0, least[np.maximum(sums, 0)] + row, np.inf)
        chosen.append(before.argmin(axis=1))
        least = before.min(axis=1)
    left, counts = batch, np.zeros(len(shares))
    for index in reversed(range(len(shares))):
        counts[index] = chosen[index][left]
        left -= int(counts[index])
    return Counts(counts, float(least[batch]) / len(shares))
