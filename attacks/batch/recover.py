"""A batch's labels and features, in five steps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attacks.batch.accept import Example, accept, certify, gradient_factor
from attacks.batch.explain import Explanation
from attacks.batch.labels import rank_one_parts, with_single_precision_labels
from attacks.batch.propose import propose
from attacks.batch.rest import peel
from attacks.batch.sharpen import Ray, sharpen
from attacks.batch.subspace import Array, Subspace, find_subspace
from attacks.last_layer import OWN_EPS, LastLayer
from attacks.loss_check import OTHER_LOSS, is_of_another_loss
from attacks.network import Network
from attacks.types import Augmentation, GradientLeak, LabelRecovery, NotApplicable, Status

MISSING = "its feature wasn't found among those that the last layer's gradient and a label agree on"
DISAGREEMENT = (
    "its label by its own feature isn't confirmed by that from all features together: some may be "
    "false"
)
FINE_LABEL = 1e-10
"""Error of the gradient's factor up to which a label has double precision."""
AGREED = 1e-2
"""Largest difference of the two."""
Solve = Callable[[LastLayer], LabelRecovery]


def recover_batch(
    leak: GradientLeak, network: Network, *, solve: Solve, generator: torch.Generator
) -> LabelRecovery:
    """Recover every example's soft label and feature from the last layer's gradient.

    Args:
        leak: of one step on a batch; its size may be unknown.
        network: a view of the leak's model.
        solve: solves the scalar problem of one example.
        generator: draws the units of the last linear programs.

    Raises:
        NotApplicable: the features aren't sparse and non-negative, or the gradient doesn't hold a
            batch's rays (see `find_subspace`).
    """
    space = find_subspace(leak, network)
    if is_of_another_loss(space.source.gradient):
        raise NotApplicable(OTHER_LOSS)
    _require_sparse_features(space, network)
    examples = find_examples(space, leak, generator)
    return _answer(space, examples, leak, network, solve)


def find_examples(
    space: Subspace, leak: GradientLeak, generator: torch.Generator
) -> tuple[Example, ...]:
    """Alternate between proposing, sharpening and accepting, and peel off what is accepted."""
    examples: tuple[Example, ...] = ()
    while len(examples) < space.batch_size:
        explained = [e.explanation.mixture for e in examples if e.explanation is not None]
        unexplained = [e.ray for e in examples if e.explanation is None]
        rest = peel(space, np.array(explained))
        refused: list[Ray] = []
        for solutions in propose(space, rest, unexplained, generator):
            candidates = (sharpen(space, rest, solution) for solution in solutions)
            fresh = accept(space, examples, candidates, refused, leak.knowledge)
            if fresh:
                examples = certify(space, (*examples, *fresh), leak.knowledge)
                break
        else:
            break
    return examples


def _require_sparse_features(space: Subspace, network: Network) -> None:
    """Refuse features that can't be told by their zeros.

    Raises:
        NotApplicable: they take both signs, or random images have hardly a zero among theirs.
    """
    if not network.has_nonnegative_features():
        raise NotApplicable(
            "the last layer's inputs take both signs; examples of a batch are told apart by "
            "features that are never negative, as after a ReLU"
        )
    generator = torch.Generator().manual_seed(0)
    probes = network.features(torch.rand(8, *network.input_shape, generator=generator))
    zeros = float((probes == 0).sum(dim=1).double().mean())
    if zeros < 1:
        raise NotApplicable(
            "the last layer's inputs are dense, as after pooling: none is zero, and examples of a "
            "batch are told apart by the zeros of their features"
        )


def _answer(
    space: Subspace,
    examples: Sequence[Example],
    leak: GradientLeak,
    network: Network,
    solve: Solve,
) -> LabelRecovery:
    """Solve each example's scalar problem, and put the rows together."""
    size = leak.batch_size or space.batch_size
    if len(examples) != space.batch_size:
        # Missing some, or with some that are false: then only what a label explains counts.
        examples = [e for e in examples if e.explanation is not None]
    if len(examples) > space.batch_size:
        examples = []  # of more than there can be, nothing says which are false
    factor = gradient_factor(space, examples)
    parts = rank_one_parts(space, examples, factor or 1.0, network) if examples else []
    pairs = zip(examples, parts, strict=True)
    rows = [_Row.of(example, _solved(example, part, factor, solve)) for example, part in pairs]
    rows.sort(key=lambda row: row.status is not Status.RECOVERED)
    rows += [_Row.missing(space)] * (size - len(rows))
    recovered = sum(row.status is Status.RECOVERED for row in rows)
    status, reason = _status_of(rows), None
    if recovered < size:
        first = next(row.reason for row in rows if row.reason is not None)
        reason = f"{recovered} of {size} examples recovered; why others weren't: {first}"
    return LabelRecovery(
        status,
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


def _solved(example: Example, part: LastLayer, factor: float | None, solve: Solve) -> LabelRecovery:
    """Solve a scalar problem, with labels of single precision where the gradient shows them.

    In a network of double precision they do: such a label sums to 1 + 1e-8, and so the ray's own
    dual shows another factor on the gradient.
    """
    found = example.explanation
    if found is not None and factor and abs(found.factor / factor - 1) > FINE_LABEL:
        part = with_single_precision_labels(part)
    return solve(part)


@dataclass(frozen=True, eq=False)
class _Row:
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
    def of(cls, example: Example, one: LabelRecovery) -> _Row:
        """Take the answer to one example's scalar problem."""
        assert one.labels is not None and one.features is not None
        assert one.residual is not None and one.feature_bar is not None
        certificate, status, reason = math.nan, one.status, one.reason
        label = one.labels[0].numpy()
        if example.explanation is not None:
            certificate = 1 / max(example.explanation.residual, OWN_EPS)
        if status is Status.RECOVERED and not _agree(example.explanation, label):
            status, reason = Status.NOT_IDENTIFIABLE, DISAGREEMENT
        return cls(
            status,
            reason,
            label,
            one.features[0].numpy(),
            one.augmentations[0],
            float(one.feature_bar[0]),
            float(one.residual[0]),
            certificate,
        )

    @classmethod
    def missing(cls, space: Subspace) -> _Row:
        label = np.full(len(space.rows), np.nan)
        return cls(Status.NOT_CONVERGED, MISSING, label, np.full(len(space.source.live), np.nan))


def _agree(explanation: Explanation | None, label: Array) -> bool:
    """Say whether the label that explains the ray alone is that from all rays together."""
    if explanation is None:
        return False
    return bool(np.abs(explanation.label - label).max() <= AGREED)


def _status_of(rows: Sequence[_Row]) -> Status:
    """Return the status of most of the rows that aren't recovered."""
    counts = Counter(row.status for row in rows if row.status is not Status.RECOVERED)
    return counts.most_common(1)[0][0] if counts else Status.RECOVERED


def _column(values: Iterable[float]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
