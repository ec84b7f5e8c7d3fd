"""What of a client's examples is free: inputs in their span, labels of one of two kinds, shares."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.unrolled.problem import Update
from attacks.unrolled.refine import Model
from attacks.unrolled.simulation import Unknowns
from attacks.unrolled.tangents import Directions


def tied_labels(labels: Tensor) -> Tensor:
    """Return labels (n, K) whose entries are equal, but for the two largest."""
    tied = labels.sort(dim=1).values[:, :-2].mean(dim=1, keepdim=True)
    top = labels.topk(2, dim=1)
    made = tied.expand_as(labels).clone().scatter(1, top.indices, top.values)
    return made + (1 - made.sum(dim=1, keepdim=True)) / labels.shape[1]


def model_of(
    update: Update,
    start: Unknowns,
    *,
    is_tied: bool,
    ways: Tensor | None = None,
    is_placed: bool = False,
) -> Model:
    """Return a model around a start.

    Args:
        update: whose bias, if it has one, fixes one coordinate of every input.
        start: the unknowns; labels of rows of sum 1.
        is_tied: whether labels are equal in all but the two largest entries.
        ways: of the shares, (S, n, Q); None where they are fixed.
        is_placed: whether inputs' directions are fixed: all of them, with a bias, else their scales
            are free.
    """
    count, size = start.inputs.shape
    frame = torch.eye(size, dtype=torch.float64)
    inputs = start.inputs
    if update.has_bias:
        last = torch.from_numpy(update.span[:, -1].copy())
        inputs = inputs + ((1 - inputs @ last) / (last @ last))[:, None] * last
        frame = torch.linalg.qr(last[:, None], mode="complete")[0][:, 1:]
    of_inputs = [frame] * count
    if is_placed:
        of_inputs = [row[:, None][:, update.has_bias :] for row in inputs]
    labels = tied_labels(start.labels) if is_tied else start.labels
    of_labels = [_label_ways(label, is_tied).T for label in labels]
    blocks = (
        _diagonal(of_inputs),
        _diagonal(of_labels),
        start.shares.new_zeros(*start.shares.shape, 0) if ways is None else ways,
    )
    total, before, parts = sum(block.shape[2] for block in blocks), 0, []
    for block in blocks:
        part = block.new_zeros(*block.shape[:2], total)
        part[:, :, before : before + block.shape[2]] = block
        before += block.shape[2]
        parts.append(part)
    return Model(Unknowns(inputs, labels, start.shares), Directions(*parts))


def _diagonal(blocks: list[Tensor]) -> Tensor:
    """Return (n, r, n f) of directions (r, f) of each of n rows alone."""
    size, before = blocks[0].shape[0], 0
    found = blocks[0].new_zeros(len(blocks), size, sum(block.shape[1] for block in blocks))
    for row, block in enumerate(blocks):
        found[row, :, before : before + block.shape[1]] = block
        before += block.shape[1]
    return found


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
