"""What of a client's examples is free: inputs in their span, labels of one of two kinds, shares."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.unrolled.problem import Update
from attacks.unrolled.refine import Model
from attacks.unrolled.schedule import of_sum_zero
from attacks.unrolled.simulation import Unknowns
from attacks.unrolled.tangents import Directions
from attacks.victim.gradients import Array


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
    inputs, frame = bias_at_one(start.inputs, update.span if update.has_bias else None)
    of_inputs = [frame] * len(inputs)
    if is_placed:
        of_inputs = [row[:, None][:, update.has_bias :] for row in inputs]
    labels = tied_labels(start.labels) if is_tied else start.labels
    of_labels = [label_ways(label, is_tied=is_tied).T for label in labels]
    blocks = (
        of_each(of_inputs),
        of_each(of_labels),
        start.shares.new_zeros(*start.shares.shape, 0) if ways is None else ways,
    )
    total, before, parts = sum(block.shape[2] for block in blocks), 0, []
    for block in blocks:
        part = block.new_zeros(*block.shape[:2], total)
        part[:, :, before : before + block.shape[2]] = block
        before += block.shape[2]
        parts.append(part)
    return Model(Unknowns(inputs, labels, start.shares), Directions(*parts))


def bias_at_one(inputs: Tensor, span: Array | None) -> tuple[Tensor, Tensor]:
    """Return inputs whose bias is 1, and directions (r, f) that leave it there.

    Args:
        inputs: in the span's coordinates, (n, r).
        span: (r, d), the bias's input is the last column; None without a bias: all are free.
    """
    if span is None:
        return inputs, torch.eye(inputs.shape[1], dtype=torch.float64)
    last = torch.from_numpy(span[:, -1].copy())
    inputs = inputs + ((1 - inputs @ last) / (last @ last))[:, None] * last
    return inputs, torch.linalg.qr(last[:, None], mode="complete")[0][:, 1:].contiguous()


def of_each(blocks: list[Tensor]) -> Tensor:
    """Return (n, r, n f) of directions (r, f) of each of n rows alone."""
    size, before = blocks[0].shape[0], 0
    found = blocks[0].new_zeros(len(blocks), size, sum(block.shape[1] for block in blocks))
    for row, block in enumerate(blocks):
        found[row, :, before : before + block.shape[1]] = block
        before += block.shape[1]
    return found


def label_ways(label: Tensor, *, is_tied: bool) -> Tensor:
    """Return directions (P, K) of sum 0 of a label (K,)."""
    classes = len(label)
    if not is_tied:
        return of_sum_zero(classes).T
    top = label.topk(2).indices
    ways = torch.full((2, classes), -1 / (classes - 2), dtype=torch.float64)
    ways[:, top] = torch.eye(2, dtype=torch.float64)
    return ways
