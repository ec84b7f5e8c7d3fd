"""What a strategy carries from round to round survives JSON and arrays on a disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, Strategy

from fl_sim.errors import UserError
from fl_sim.flower.engines.local import LocalGrid
from fl_sim.flower.strategy import ReplyGuard
from fl_sim.flower.strategy.state import pack_state, restore_state
from fl_sim.flower.strategy.wrapper import Wrapper

OPTIONS: dict[str, Any] = {
    "fraction_evaluate": 0.0,
    "min_train_nodes": 1,
    "min_available_nodes": 1,
}


def through_the_disk(state: dict[str, Any]) -> dict[str, Any]:
    """Return a packed state as it comes back: values through JSON, arrays through bytes."""
    values = json.loads(json.dumps({key: state[key] for key in ("values", "lost")}))
    arrays = {name: Array(np.asarray(array)).numpy() for name, array in state["arrays"].items()}
    return {**values, "arrays": arrays}


def train(strategy: Strategy, server_round: int, arrays: ArrayRecord) -> ArrayRecord:
    """Run a round on one client that adds its round's noise to every weight."""
    app = ClientApp()

    @app.train()
    def reply(message: Message, context: object) -> Message:
        noise = np.random.default_rng(server_round).normal(size=3).astype(np.float32)
        received = message.content.array_records["arrays"]
        sent = {
            name: Array(np.asarray(array.numpy() + noise.sum())) for name, array in received.items()
        }
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"a": ArrayRecord(sent), "m": metrics}), reply_to=message)

    grid = LocalGrid(app, 1, {})
    guard = ReplyGuard(strategy, sample=lambda server_round: [1])
    messages = guard.configure_train(server_round, arrays, ConfigRecord(), grid)
    aggregate, _ = guard.aggregate_train(server_round, grid.send_and_receive(messages))
    assert aggregate is not None
    return aggregate


START = ArrayRecord({"w": Array(np.ones(3, np.float32)), "scalar": Array(np.array(2, np.float32))})


@pytest.mark.parametrize("kind", [FedAvg, FedAdam])
def test_a_restored_strategy_goes_on_as_the_old_one(kind: type[Strategy]) -> None:
    strategy, arrays = kind(**OPTIONS), START
    for server_round in (1, 2, 3):
        arrays = train(strategy, server_round, arrays)
    state = through_the_disk(pack_state(strategy))
    restored = kind(**OPTIONS)
    restore_state(restored, state)
    expected = train(strategy, 4, arrays)
    found = train(restored, 4, arrays)
    assert list(found) == list(expected)
    assert all(found[name].data == expected[name].data for name in expected)
    if kind is FedAdam:
        afresh = train(kind(**OPTIONS), 4, arrays)
        assert afresh["w"].data != expected["w"].data, "or the state would say nothing"


class Carries(FedAvg):
    """A strategy with state of every kind that can be kept."""

    def __init__(self) -> None:
        super().__init__(**OPTIONS)
        self.nested = {"a": [np.arange(3), {"b": (1, 2.5, None, "x", True)}], "c": {}}
        self.zero = np.zeros(())
        self.float = np.float32(0.1)
        self.big = 2**80
        self.function: Callable[[], int] = lambda: 1


def test_containers_of_arrays_numbers_and_strings_are_kept() -> None:
    state = through_the_disk(pack_state(Wrapper(Wrapper(Carries()))))
    restored = Carries()
    expected = vars(Carries())
    for name in ("nested", "zero", "float", "big", "weighted_by_key"):
        setattr(restored, name, None)
    restore_state(ReplyGuard(restored), state)
    assert restored.nested["a"][0].tolist() == [0, 1, 2]
    assert restored.nested["a"][1] == expected["nested"]["a"][1]
    assert restored.nested["c"] == {}
    assert restored.zero.shape == ()
    assert isinstance(restored.float, np.float32)
    assert (restored.float, restored.big) == (expected["float"], 2**80)
    assert restored.weighted_by_key == "num-examples"
    assert restored.function() == 1


@pytest.mark.parametrize("value", [{1: "not a string key"}, {3}, [ArrayRecord()], b"bytes"])
def test_state_that_cannot_be_kept_is_named(value: object) -> None:
    strategy = FedAvg(**OPTIONS)
    strategy.memory = value  # type: ignore[attr-defined]
    state = pack_state(strategy)
    assert state["lost"] == ["memory"]
    with pytest.raises(UserError, match=r"FedAvg keeps state that can't be checkpointed in memory"):
        restore_state(FedAvg(**OPTIONS), state)
