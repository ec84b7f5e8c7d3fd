"""What can be said of examples that are found while others are missing.

A pair (q, t) stands for itself: `U q` is the direction of an example's δ, and `T t` that of
`W_{l+1}ᵀ e`, with e = p − y where the last layer is above. What takes all pairs is its input, which
is dual to the q: of those found it is known but for multiples of the missing inputs, and these by
the masks alone (`attacks.masks.leftover`). So p and the scale of e are estimates, and the label is
one: its class is clear, its smoothing rough, and nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from attacks.answers import ExampleLabel, LabelRecovery, Status
from attacks.dense.network import FullyConnected
from attacks.masks.equation import MaskEquation
from attacks.masks.leftover import rough_duals
from attacks.masks.polish import Pair
from attacks.numerics.softmax import softmax
from attacks.victim.gradients import Array

FOUND = (
    "its part of layer {!r}'s gradient is found, as those of {} of {} examples are; its input, and "
    "the scale of its label's part, are known up to what the others are"
)
NOT_FOUND = "the masks of layer {!r} didn't show it, as they did {} of {} examples"


def partial_answer(
    equation: MaskEquation, pairs: Sequence[Pair], chain: FullyConnected, batch: int
) -> LabelRecovery:
    """Answer for a batch of which some examples are found, and not all.

    Args:
        equation: of the first layer of the chain.
        pairs: those found there, at least one.
        chain: from that layer to the logits.
        batch: B.
    """
    name, count = equation.source.name, len(pairs)
    labels = _estimated(equation, pairs, chain, batch)
    reason = FOUND.format(name, count, equation.size)
    rows = [
        ExampleLabel(
            Status.NOT_IDENTIFIABLE,
            reason,
            label=None if label is None else torch.from_numpy(label),
            residual=pair.misfit,
        )
        for pair, label in zip(pairs, labels, strict=True)
    ]
    missing = ExampleLabel(Status.NOT_CONVERGED, NOT_FOUND.format(name, count, equation.size))
    return LabelRecovery.of(rows + [missing] * (batch - count))


def _estimated(
    equation: MaskEquation, pairs: Sequence[Pair], chain: FullyConnected, batch: int
) -> list[Array | None]:
    """Return labels (K,), where a bias gives a scale and the last layer is the next one."""
    if len(chain.layers) > 2 or not chain.layers[0].has_bias:
        return [None] * len(pairs)
    kept = chain.kept[0] if chain.kept else 1.0
    duals = rough_duals(equation, pairs, kept)
    rows = ((duals * equation.values) @ equation.right) * equation.columns
    outputs = (rows / rows[:, -1:]) @ equation.source.weight.T
    shown = np.zeros((len(pairs), len(equation.live)))
    shown[:, equation.live] = np.array([pair.is_on for pair in pairs]) * outputs / kept
    head = chain.layers[-1]
    p = softmax(head.augmented(shown) @ head.weight.T)
    w = equation.rows * (np.array([pair.t for pair in pairs]) @ equation.targets.T)
    mixtures = np.linalg.lstsq(head.weights[:, equation.live].T, w.T, rcond=None)[0].T
    labels = p - batch * rows[:, -1:] * (mixtures - mixtures.mean(axis=1, keepdims=True))
    return [_on_simplex(label) for label in labels]


def _on_simplex(label: Array) -> Array | None:
    """Return the nearest label to an estimate; None where it is none."""
    positive = label.clip(0)
    total = float(positive.sum())
    return np.asarray(positive / total) if np.isfinite(total) and total > 0 else None
