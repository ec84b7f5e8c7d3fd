"""Which step took which example, as masks tell: what shows nothing of an example was off for it.

Each example's part of the first layer's update is known, and its input. Where its gradient was much
the same in all steps that took it (in one epoch there is one such step), a schedule alone says what
the layer's weights were before each step, without labels. A unit that has nothing of an example was
off in the steps that took it: an output above 0 at a step's weights speaks against that step. So
from all examples in all steps a schedule follows, from that one better weights, in turns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from attacks.unrolled.problem import Update
from attacks.unrolled.schedule import Timetable
from attacks.unrolled.simulation import Unknowns, Weights
from attacks.unrolled.vanishing import VANISHED

TURNS, HALF_TURNS = 12, 8
"""In all, and those that go half the way."""
LOUDEST = 0.05
"""Of an output, in root mean squares: more speaks no louder, as weights are roughly known."""


def by_masks(update: Update, inputs: Tensor) -> Timetable:
    """Return the schedule that inputs (n, r), with a bias at the right scales, agree with best."""
    parts, taken = update.parts(inputs), update.timetable.taken
    for turn in range(TURNS):
        nearest = _nearest(update, inputs, parts, _on_the_way(update, inputs, parts, taken))
        taken = (taken + nearest.taken) / 2 if turn < HALF_TURNS else nearest.taken
    return nearest


def by_training(update: Update, client: Unknowns) -> Timetable:
    """Return the schedule that the masks of a client's training speak for."""
    weights = (step.weights[0] for step, _ in update.simulation.passes(client))
    return _nearest(update, client.inputs, update.parts(client.inputs), weights)


def _on_the_way(update: Update, inputs: Tensor, parts: Tensor, taken: Tensor) -> Iterator[Tensor]:
    """Yield the first layer's weights (D, r) before each step, its examples' gradients all alike.

    Args:
        update: of the client.
        inputs: (n, r).
        parts: of the update, each example's, (n, D).
        taken: how much of each example each step takes, (S, n).
    """
    reach = torch.tensor(update.optimizer.responses(update.steps), dtype=torch.float64) @ taken
    each = parts / reach[:, None]
    weights: Weights = (update.simulation.weights[0],)
    buffers: Weights | None = None
    for share in taken:
        yield weights[0]
        gradient = (share[:, None] * each).T @ inputs
        weights, buffers = update.optimizer.step(weights, (gradient,), buffers)


def _nearest(update: Update, inputs: Tensor, parts: Tensor, weights: Iterator[Tensor]) -> Timetable:
    """Return the schedule that the fewest outputs speak against, at weights before each step."""
    has_none = parts.abs() < VANISHED * parts.square().mean(dim=1, keepdim=True).sqrt()
    against = []
    for before in weights:
        outputs = inputs @ before.T
        size = outputs.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-300)
        against.append((has_none * outputs / size).clamp(0, LOUDEST).sum(dim=1))
    sizes = update.timetable.sizes[:, None]
    return update.timetable.nearest(-torch.stack(against) / sizes)


def with_shares(client: Unknowns, update: Update, nearest: Timetable) -> Unknowns:
    """Return a client halfway between a schedule and all examples in all steps."""
    return dataclasses.replace(client, shares=(nearest.shares + update.timetable.shares) / 2)
