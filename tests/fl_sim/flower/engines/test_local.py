"""Whole runs in this process: the same seed gives the same bytes, and clients may misbehave."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.numpy import load_file

from fl_sim.federation import Federation
from fl_sim.flower import client
from fl_sim.flower.client import Trained, train_locally
from fl_sim.flower.engines.local import LocalGrid
from fl_sim.flower.run import run
from fl_sim.flower.wire import wire_tensors
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]
OutcomeOf = Callable[[Path], dict[str, str | bytes]]

# Everything that draws: sampling, batches, mixup, noise, dropout, an attack.
ALL_DRAWS = (
    "data.clients=4",
    "client.fraction=0.5",
    "client.mode=train",
    "model.name=third_party:dropout",
    'defense=[{name="mixup"}, {name="dp-noise", clipping_norm=0.1, noise_multiplier=0.01}]',
    'attack=[{label="third_party:Draws"}, {label="third_party:Formula"}]',
    "server.strategy=fedadam",
)


def lines_of(folder: Path, log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / log).read_text().splitlines()]


@pytest.fixture(scope="module")
def first(tiny: Tiny, outcome_of: OutcomeOf, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the outcome of a run in which everything draws."""
    folder = tmp_path_factory.mktemp("first")
    run(tiny(*ALL_DRAWS), folder)
    return outcome_of(folder)


def test_the_same_seed_gives_the_same_bytes(
    tiny: Tiny, outcome_of: OutcomeOf, tmp_path: Path, first: Any
) -> None:
    state = random.getstate()
    with torch.random.fork_rng():
        random.seed(7)
        torch.manual_seed(7)
        run(tiny(*ALL_DRAWS), tmp_path)
    random.setstate(state)
    assert outcome_of(tmp_path) == first
    assert {"leakage.jsonl", "rounds.jsonl", "checkpoint/round-00003.safetensors"} <= first.keys()
    assert len([name for name in first if name.startswith("images/")]) == 6


def test_a_network_that_draws_in_eval_mode_gives_the_same_bytes(
    tiny: Tiny, outcome_of: OutcomeOf, tmp_path: Path
) -> None:
    attacks = 'attack=[{label="soft-label", image="analytic"}, {label="label-mass"}]'
    scenario = tiny("model.name=third_party:AlwaysDrops", attacks)
    outcomes = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            run(scenario, tmp_path / str(seed))
            state = torch.get_rng_state()
            assert torch.equal(state, torch.Generator().manual_seed(seed).get_state())
        outcomes.append(outcome_of(tmp_path / str(seed)))
    assert outcomes[0] == outcomes[1]


def test_another_seed_gives_other_bytes(
    tiny: Tiny, outcome_of: OutcomeOf, tmp_path: Path, first: Any
) -> None:
    run(tiny(*ALL_DRAWS, "seed=4"), tmp_path)
    found = outcome_of(tmp_path)
    for name in ("leakage.jsonl", "rounds.jsonl", "checkpoint/round-00003.safetensors"):
        assert found[name] != first[name]


@pytest.mark.e2e
def test_another_process_gives_the_same_bytes(
    tiny_file: Path, outcome_of: OutcomeOf, tmp_path: Path, first: Any
) -> None:
    command = [sys.executable, "-m", "fl_sim.cli", "run", str(tiny_file)]
    overrides = [part for override in ALL_DRAWS for part in ("--set", override)]
    environment = os.environ | {"PYTHONPATH": str(tiny_file.parent), "PYTHONHASHSEED": "12"}
    out = tmp_path / "run"
    done = subprocess.run(
        [*command, *overrides, "--out", str(out)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert outcome_of(out) == first


def misbehaving(do: Callable[[int, int, Trained], Trained]) -> Callable[..., Trained]:
    """Return `train_locally` with `do` applied to (client, server round, what is sent)."""

    def train(scenario: Scenario, number: int, server_round: int, *rest: Any) -> Trained:
        return do(number, server_round, train_locally(scenario, number, server_round, *rest))

    return train


def test_clients_that_misbehave_are_left_out_with_their_reasons(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misbehave(number: int, server_round: int, sent: Trained) -> Trained:
        weights = sent.weights
        match (number, server_round):
            case (1, 1):
                weights["2.weight"][0, 0] = torch.nan
            case (0, 2):
                raise MemoryError("no room\nfor more")
            case (1, 2):
                narrow = weights["2.weight"][:, :1]
                return sent._replace(weights=weights | {"2.weight": narrow})
            case (2, 3):
                del weights["2.bias"]
        return sent

    monkeypatch.setattr(client, "train_locally", misbehaving(misbehave))
    run(tiny(), tmp_path)
    records = lines_of(tmp_path, "leakage.jsonl")
    assert {(r["round"], r["client"]): r["label_reason"] for r in records} == {
        (1, 0): None,
        (1, 1): "reply left out: array '2.weight' has NaN or infinite entries",
        (1, 2): None,
        (2, 0): "reply left out: the client failed: MemoryError: no room",
        (2, 1): "reply left out: array '2.weight' must have the shape (4, 16), found (4, 1)",
        (2, 2): None,
        (3, 0): None,
        (3, 1): None,
        (3, 2): "reply left out: array '2.bias' is missing",
    }
    left_out = [r for r in records if r["label_reason"]]
    for key in ("attack", "example", "label_attack", "label_status", "image_status", "psnr_db"):
        assert {record[key] for record in left_out} == {None}
    assert all(r["label_status"] == "RECOVERED" for r in records if r not in left_out)
    rounds = lines_of(tmp_path, "rounds.jsonl")
    assert [(line["replies"], line["quarantined"]) for line in rounds] == [
        *((0, 0), (2, 1), (1, 2), (2, 1)),
    ]


def test_the_others_aggregate_as_if_nobody_else_had_replied(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misbehave(number: int, server_round: int, sent: Trained) -> Trained:
        if number == 1:
            raise RuntimeError("out of battery")
        return sent

    scenario = tiny("rounds=1")
    start = wire_tensors(Federation.of(scenario).build_model(), "eval")
    zero, two = (train_locally(scenario, number, 1, start)[0]["2.weight"] for number in (0, 2))
    monkeypatch.setattr(client, "train_locally", misbehaving(misbehave))
    run(scenario, tmp_path)
    found = load_file(tmp_path / "checkpoint" / "round-00001.safetensors")["model/2.weight"]
    assert torch.equal(torch.from_numpy(found), 0.5 * zero + 0.5 * two)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_a_round_without_a_good_reply_changes_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    def misbehave(number: int, server_round: int, sent: Trained) -> Trained:
        if server_round != 1:
            raise RuntimeError("out of battery")
        return sent

    monkeypatch.setattr(client, "train_locally", misbehaving(misbehave))
    run(tiny("rounds=1", f"server.strategy={strategy}"), tmp_path / "one")
    run(tiny(f"server.strategy={strategy}"), tmp_path / "three")
    first = load_file(tmp_path / "one" / "checkpoint" / "round-00001.safetensors")
    last = load_file(tmp_path / "three" / "checkpoint" / "round-00003.safetensors")
    assert last["model/2.weight"].tobytes() == first["model/2.weight"].tobytes()
    rounds = lines_of(tmp_path / "three", "rounds.jsonl")
    assert [line["replies"] for line in rounds] == [0, 3, 0, 0]
    assert {(line["accuracy"], line["loss"]) for line in rounds[1:]} == {
        (rounds[1]["accuracy"], rounds[1]["loss"])
    }
    reasons = [r["label_reason"] for r in lines_of(tmp_path / "three", "leakage.jsonl")[3:]]
    assert reasons == ["reply left out: the client failed: RuntimeError: out of battery"] * 6


def test_progress_is_told_client_by_client(tiny: Tiny, tmp_path: Path) -> None:
    told: list[tuple[int, int, int]] = []
    run(tiny("rounds=2", "attack=[]"), tmp_path, on_progress=lambda *what: told.append(what))
    assert told == [(server_round, done, 3) for server_round in (1, 2) for done in (1, 2, 3)]


def test_a_run_leaves_the_number_of_threads_as_it_was(tiny: Tiny, tmp_path: Path) -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(
            tiny("rounds=1", "attack=[]"),
            tmp_path,
            on_progress=lambda *what: seen.append(torch.get_num_threads()),
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_a_client_cannot_change_what_another_receives() -> None:
    app = ClientApp()

    @app.query()
    def greedy(message: Message, context: Context) -> Message:
        config = message.content.config_records["config"]
        config["taken"] = int(str(config["taken"])) + 1
        return Message(message.content, reply_to=message)

    shared = RecordDict({"config": ConfigRecord({"taken": 0})})
    messages = [Message(shared, dst_node_id=node, message_type="query") for node in (1, 2, 3)]
    replies = LocalGrid(app, 3, {}).send_and_receive(messages)
    assert [reply.content["config"]["taken"] for reply in replies] == [1, 1, 1]
    assert shared["config"]["taken"] == 0


def test_a_grid_needs_a_node() -> None:
    with pytest.raises(ValueError, match="clients must be at least 1, found 0"):
        LocalGrid(client.app, 0)
