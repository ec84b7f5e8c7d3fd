"""What is in a message: the model's weights, and what a client reports of its training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, RecordDict
from torch import Tensor, nn

from attacks.intake import plain_names
from fl_sim.flower.wire import LocalTraining

STEPS_KEY = "num-steps"
"""A metric in which clients may report their number of optimizer steps."""
EXAMPLES_KEY = "num-examples"
"""The metric in which Flower's clients report how many examples they trained on."""


def arrays_of(content: RecordDict, model: nn.Module) -> ArrayRecord:
    """Return the record with the most of a model's arrays; an empty one without any."""
    own = {name for name, _ in model.named_parameters()}
    records = content.array_records.values()
    fits = [len(own.intersection(plain_names(r, model).values())) for r in records]
    pairs = sorted(zip(fits, records, strict=True), key=lambda pair: -pair[0])
    return pairs[0][1] if pairs else ArrayRecord()


def tensors_of(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Return the tensors of a record."""
    return {name: torch.from_numpy(array.numpy()) for name, array in arrays.items()}


def metrics_of(reply: Message) -> dict[str, Any]:
    """Return all that a reply reports; an error reports nothing."""
    records = [] if reply.has_error() else reply.content.metric_records.values()
    return {name: value for record in records for name, value in record.items()}


def training_of(training: LocalTraining, metrics: Mapping[str, Any]) -> LocalTraining:
    """Return how a client trained, by what it reports.

    Args:
        training: as the server configured it.
        metrics: that it reports.

    Raises:
        ValueError: its steps or examples are no number of them, or aren't there where they count.
    """
    steps = _number(metrics, STEPS_KEY, "steps")
    if training.local_epochs is None:
        return training.of_client(steps=steps)
    examples = _number(metrics, EXAMPLES_KEY, "examples")
    return training.of_client(examples=examples, steps=steps)


def _number(metrics: Mapping[str, Any], key: str, what: str) -> int | None:
    """Return how many steps or examples a client reports, None where it doesn't.

    Raises:
        ValueError: it isn't a number of them.
    """
    found = metrics.get(key)
    if found is None:
        return None
    is_number = isinstance(found, int | float) and math.isfinite(found)
    if not is_number or found != int(found) or found < 1:
        raise ValueError(f"metric {key!r} must be a number of {what}, found {found}")
    return int(found)
