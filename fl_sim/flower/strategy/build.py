"""Strategies by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from flwr.serverapp.strategy import Strategy

from fl_sim.errors import UserError
from fl_sim.flower.wire import TRAIN_LOSS

BUILT_IN = {
    "fedavg": "flwr.serverapp.strategy:FedAvg",
    "fedadam": "flwr.serverapp.strategy:FedAdam",
    "krum": "flwr.serverapp.strategy:Krum",
}

_LEFT_OUT = {
    "arrayrecord_key": "since clients expect 'arrays'",
    "configrecord_key": "since clients expect 'config'",
    "train_metrics_aggr_fn": "since it would have to be a function",
    "evaluate_metrics_aggr_fn": "since clients evaluate nothing",
    "eta_l": "since clients train with client.lr",
}
"""What Flower's strategies accept, and neither they nor our clients read."""


def build_strategy(name: str, options: Mapping[str, Any]) -> Strategy:
    """Build a strategy that takes every client it is offered.

    Args:
        name: "fedavg", "fedadam", "krum", or `module:attr` of a class with FedAvg's keyword
            arguments.
        options: further keyword arguments.

    Raises:
        UserError: the name can't be imported, or the options aren't accepted.
    """
    module, _, attribute = BUILT_IN.get(name, name).partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
        known = inspect.signature(factory).parameters
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"strategy {name!r} can't be imported: {error}") from error
    offered = {
        "fraction_train": 1.0,
        "fraction_evaluate": 0.0,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 0,
        "min_available_nodes": 1,
    }
    for option in options:
        if option not in known or option in offered:
            free = sorted(set(known) - set(offered))
            raise UserError(
                f"strategy {name!r}: unknown option {option!r}; known: {', '.join(free)}"
            )
    if getattr(factory, "__module__", "").startswith("flwr."):
        _require_read(name, options)
    fixed = {key: value for key, value in offered.items() if key in known}
    try:
        strategy = factory(**fixed, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"strategy {name!r}: {error}") from error
    if not isinstance(strategy, Strategy):
        raise UserError(f"strategy {name!r} must build a Flower Strategy, found {type(strategy)}")
    return strategy


def _require_read(name: str, options: Mapping[str, Any]) -> None:
    """Raise for an option of a strategy of Flower's that would make no difference."""
    left_out = dict(_LEFT_OUT)
    if name == "krum":
        left_out["weighted_by_key"] = "since Krum keeps a single reply"
    for option, value in options.items():
        if option in left_out:
            raise UserError(
                f"server.options.{option}: must be left out with strategy {name!r}, "
                f"{left_out[option]}, found {value!r}"
            )


def require_loss_unread(name: str, strategy: Strategy) -> None:
    """Raise for a strategy that reads the clients' training loss.

    Raises:
        UserError: it does.
    """
    read = [getattr(strategy, key, None) for key in ("weighted_by_key", "train_loss_key")]
    if TRAIN_LOSS in read:
        raise UserError(
            f"server: strategy {name!r} reads the clients' {TRAIN_LOSS!r}, which clients whose "
            "defenses claim privacy don't report"
        )
