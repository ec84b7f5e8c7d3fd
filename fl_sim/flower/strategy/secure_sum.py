"""What a server sees under secure aggregation: sums of clients' updates, no single one.

K. Bonawitz et al., *Practical Secure Aggregation for Privacy-Preserving Machine Learning*, CCS
2017: the protocol hides all but the sum. It is the server's view that is modelled here, not the
protocol: an honest server that learns the weighted mean of a group's updates, and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from fl_sim.capture.update import Update
from fl_sim.optimizers import TITLES

FEWEST = 2
"""Members whose sum is shown: of a single one it would be the update."""


def groups_of(clients: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Split clients into groups, in order; a rest smaller than a group joins the last one.

    Example:
        >>> groups_of([0, 2, 3, 5, 8], 2)
        [(0, 2), (3, 5, 8)]
    """
    starts = range(0, max(len(clients) - size + 1, 1), size)
    groups = [list(clients[start : start + size]) for start in starts]
    groups[-1] += clients[starts[-1] + size :]
    return [tuple(group) for group in groups if group]


def mean_of(pairs: Sequence[tuple[Update, float]], members: tuple[int, ...]) -> Update:
    """Return the weighted mean of updates as an update of one batch, that of all members together.

    Of one local step of SGD it is exactly that, where weights count examples. Over several steps
    each member goes a way of its own, and nothing is told of whose examples a step took.

    Args:
        pairs: the update of each member that replied, and its weight, its number of examples.
        members: all whose sum it is.

    Raises:
        ValueError: they have no common mean that is a gradient: fewer than two replied, they
            received different weights, took different numbers of steps, or didn't train with SGD.
    """
    if len(pairs) < FEWEST:
        raise ValueError(
            f"{len(pairs)} of {len(members)} clients replied: secure aggregation shows no sum of "
            f"fewer than {FEWEST}"
        )
    updates = [update for update, _ in pairs]
    first = updates[0]
    if any(update.received is not first.received for update in updates):
        raise ValueError("the clients received different weights: their sum is no batch's gradient")
    trainings = [update.training for update in updates]
    if first.training.optimizer != "sgd":
        title = TITLES[first.training.optimizer]
        raise ValueError(f"a sum of {title}'s steps is neither a gradient nor a gradient's signs")
    steps = {training.local_steps for training in trainings}
    if len(steps) > 1:
        raise ValueError(
            f"the clients took {sorted(steps)} steps: their sum is no batch's gradient"
        )
    total = sum(weight for _, weight in pairs)
    sent = {}
    for name, part in first.sent.items():
        parts = [weight / total * update.sent[name].double() for update, weight in pairs]
        sent[name] = torch.stack(parts).sum(dim=0).to(part)
    sizes = [training.batch_size for training in trainings]
    told = [training.examples for training in trainings]
    is_one_step = steps == {1}
    training = dataclasses.replace(
        first.training,
        batch_size=_total(sizes),
        examples=_total(told) if is_one_step else None,
        schedule=first.training.schedule if is_one_step else None,
    )
    return dataclasses.replace(first, client=members[0], sent=sent, training=training)


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
