"""Augmented labels as linear functions of at most two numbers.

Once its largest classes a and b are known, a label is

    y = 1/K + u (e_a − 1/K) + w (e_b − 1/K),    ε = 1 − u − w,    mixing = u / (u + w).

Hard: u = 1, w = 0. Smoothing: w = 0. Mixup: u + w = 1. Mixup with smoothing: both free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.answers import Augmentation
from attacks.facts import Told
from attacks.victim.gradients import Array


@dataclass(frozen=True)
class LabelModel:
    """Which labels are considered.

    Args:
        pair: whether two classes share the label.
        total: u + w = 1 − ε where it is known; None where ε is free.
    """

    pair: bool
    total: float | None

    @property
    def unknowns(self) -> int:
        """Free numbers in the label; λ and c aren't counted."""
        return int(self.pair) + (self.total is None)

    def basis(self, classes: int, a: int, b: int) -> tuple[Array, Array]:
        """Return y₀ (K,) and Y (K, unknowns) such that `y = y₀ + Y β`."""
        uniform = np.full(classes, 1 / classes)
        towards_a, towards_b = -uniform, -uniform
        towards_a[a] += 1
        towards_b[b] += 1
        if not self.pair and self.total is None:
            return uniform, towards_a[:, None]
        if not self.pair:
            return uniform + self.total * towards_a, np.empty((classes, 0))
        if self.total is None:
            return uniform, np.stack([towards_a, towards_b], axis=1)
        return uniform + self.total * towards_b, self.total * (towards_a - towards_b)[:, None]

    def describe(self, label: Array, a: int, b: int) -> Augmentation:
        """Name the augmentation behind a label of this model."""
        if self.total is not None:
            smoothing = 1 - self.total
        elif self.pair:
            smoothing = len(label) * (1 - label[a] - label[b]) / max(len(label) - 2, 1)
        else:
            smoothing = 1 - (label[a] - label[b])
        smoothing = float(np.clip(smoothing, 0, 1))
        smooth = self.total is None or self.total < 1
        if not self.pair:
            return Augmentation("label-smoothing" if smooth else "hard", smoothing)
        share = (label[a] - smoothing / len(label)) / max(1 - smoothing, 1e-300)
        return Augmentation(
            "mixup+label-smoothing" if smooth else "mixup",
            smoothing,
            float(np.clip(max(share, 1 - share), 0.5, 1)),
        )


def label_models(told: Told) -> list[LabelModel]:
    """Return the models that an attacker's knowledge leaves, the simplest first."""
    epsilon = told.smoothing
    models = [LabelModel(False, 1.0), LabelModel(False, None), LabelModel(True, 1.0)]
    models.append(LabelModel(True, None))
    if told.type is not None:
        # A pair of one class is no pair: mixing includes its unmixed counterpart.
        kept = {"hard": (0,), "label-smoothing": (1,), "mixup": (0, 2)}.get(told.type, (1, 3))
        models = [models[index] for index in kept]
    if epsilon is not None:
        models = [LabelModel(pair, 1 - epsilon) for pair in sorted({m.pair for m in models})]
    return models
