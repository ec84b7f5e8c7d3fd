"""What of a client's examples is free: inputs in their span, labels of one of two kinds."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.unrolled.problem import Update
from attacks.unrolled.refine import Model
from attacks.unrolled.simulation import Unknowns


def tied_labels(labels: Tensor) -> Tensor:
    """Return labels (n, K) whose entries are equal, but for the two largest."""
    tied = labels.sort(dim=1).values[:, :-2].mean(dim=1, keepdim=True)
    top = labels.topk(2, dim=1)
    made = tied.expand_as(labels).clone().scatter(1, top.indices, top.values)
    return made + (1 - made.sum(dim=1, keepdim=True)) / labels.shape[1]


def model_of(update: Update, start: Unknowns, *, is_tied: bool) -> Model:
    """Return a model around a start.

    Args:
        update: whose bias, if it has one, fixes one coordinate of every input.
        start: the unknowns; labels of rows of sum 1.
        is_tied: whether labels are equal in all but the two largest entries.
    """
    count, size = start.inputs.shape
    frame = torch.eye(size, dtype=torch.float64)
    inputs = start.inputs
    if update.has_bias:
        last = torch.from_numpy(update.span[:, -1].copy())
        inputs = inputs + ((1 - inputs @ last) / (last @ last))[:, None] * last
        frame = torch.linalg.qr(last[:, None], mode="complete")[0][:, 1:].T
    labels = tied_labels(start.labels) if is_tied else start.labels
    start = Unknowns(inputs, labels, start.shares)
    of_inputs = [(row, way) for row in range(count) for way in frame]
    of_labels = [(row, way) for row in range(count) for way in _label_ways(labels[row], is_tied)]
    total = len(of_inputs) + len(of_labels)
    directions = Unknowns(
        *(part.new_zeros(total, *part.shape) for part in (start.inputs, labels, start.shares))
    )
    for index, (row, way) in enumerate(of_inputs):
        directions.inputs[index, row] = way
    for index, (row, way) in enumerate(of_labels, start=len(of_inputs)):
        directions.labels[index, row] = way
    return Model(start, directions)


def _label_ways(label: Tensor, is_tied: bool) -> Tensor:
    """Return directions (P, K) of sum 0."""
    classes = len(label)
    if not is_tied:
        ones = torch.ones(classes, 1, dtype=torch.float64)
        basis: Tensor = torch.linalg.qr(ones, mode="complete")[0]
        return basis[:, 1:].T
    top = label.topk(2).indices
    ways = torch.full((2, classes), -1 / (classes - 2), dtype=torch.float64)
    ways[:, top] = torch.eye(2, dtype=torch.float64)
    return ways
