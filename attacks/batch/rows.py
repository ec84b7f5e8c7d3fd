"""The answers to a batch's examples, one row each, put together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attacks.types import Augmentation, LabelRecovery, Status
from attacks.victim.gradients import Array


@dataclass(frozen=True, eq=False)
class Row:
    """One example of the answer; NaN where it isn't found."""

    status: Status
    reason: str | None
    label: Array
    feature: Array
    augmentation: Augmentation | None = None
    feature_bar: float = math.nan
    residual: float = math.nan
    certificate: float = math.nan

    @classmethod
    def of(cls, one: LabelRecovery) -> Row:
        """Take the answer to one example's scalar problem, but for its certificate."""
        assert one.labels is not None and one.features is not None
        assert one.residual is not None and one.feature_bar is not None
        return cls(
            one.status,
            one.reason,
            one.labels[0].numpy(),
            one.features[0].numpy(),
            one.augmentations[0],
            float(one.feature_bar[0]),
            float(one.residual[0]),
        )

    @classmethod
    def missing(cls, classes: int, width: int, status: Status, reason: str) -> Row:
        """Return the row of an example that isn't found."""
        return cls(status, reason, np.full(classes, np.nan), np.full(width, np.nan))


def answer_of(rows: Sequence[Row], factor: float | None) -> LabelRecovery:
    """Put the rows together.

    Args:
        rows: one for each example, at least one.
        factor: on the gradient, if the examples agree on one.
    """
    size = len(rows)
    recovered = sum(row.status is Status.RECOVERED for row in rows)
    reason = None
    if recovered < size:
        first = next(row.reason for row in rows if row.reason is not None)
        reason = f"{recovered} of {size} examples recovered; why others weren't: {first}"
    return LabelRecovery(
        _status_of(rows),
        reason,
        labels=torch.from_numpy(np.array([row.label for row in rows])),
        features=torch.from_numpy(np.array([row.feature for row in rows])),
        feature_bar=_column(row.feature_bar for row in rows),
        gradient_scale=factor,
        statuses=tuple(row.status for row in rows),
        reasons=tuple(row.reason for row in rows),
        augmentations=tuple(row.augmentation for row in rows),
        residual=_column(row.residual for row in rows),
        certificate=_column(row.certificate for row in rows),
        batch_size=size,
    )


def _status_of(rows: Sequence[Row]) -> Status:
    """Return the status of most of the rows that aren't recovered."""
    counts = Counter(row.status for row in rows if row.status is not Status.RECOVERED)
    return counts.most_common(1)[0][0] if counts else Status.RECOVERED


def _column(values: Iterable[float]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
