"""Defenses that keep something: over rounds, kills and resumed runs, and with nobody else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor

from fl_sim.federation import Federation
from fl_sim.flower import client
from fl_sim.flower.client import to_arrays, train_locally
from fl_sim.flower.engines.local import LocalGrid
from fl_sim.flower.run import run
from fl_sim.flower.wire import wire_tensors
from fl_sim.leakage.records import read_lines
from fl_sim.run_folder import RunFolder
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]
OutcomeOf = Callable[[Path], dict[str, str | bytes]]
Sent = dict[tuple[int, int], dict[str, Tensor]]
# Two clients of three in each round: a client's last round needn't be the one before.
KEEPING = (
    "rounds=6",
    "client.fraction=0.67",
    "client.local_steps=2",
    'defense=[{name="third_party:Velocity"}, {name="third_party:LargestEntries"}]',
)


class Killed(BaseException):
    """Ends a run where it stands; nobody catches it."""


def killed_at(server_round: int, reply: int) -> Callable[[int, int, int], None]:
    def on_progress(now: int, replies: int, clients: int) -> None:
        if (now, replies) == (server_round, reply):
            raise Killed

    return on_progress


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Return what clients sent, by (client, round); the last time if there were several."""
    found: Sent = {}

    def train(scenario: Scenario, number: int, server_round: int, *rest: Any) -> Any:
        trained = train_locally(scenario, number, server_round, *rest)
        found[number, server_round] = trained.weights
        return trained

    monkeypatch.setattr(client, "train_locally", train)
    return found


def equal(one: Sent, two: Sent) -> bool:
    same_tensors = (torch.equal(t, two[k][n]) for k, sent in one.items() for n, t in sent.items())
    return one.keys() == two.keys() and all(same_tensors)


@pytest.mark.parametrize("at", [(1, 1), (2, 1), (4, 2), (6, 1)], ids=str)
def test_a_resumed_run_sends_what_an_unbroken_one_sends(
    tiny: Tiny, sent: Sent, outcome_of: OutcomeOf, tmp_path: Path, at: tuple[int, int]
) -> None:
    scenario, broken = tiny(*KEEPING), tmp_path / "broken"
    run(scenario, tmp_path / "whole")
    expected = dict(sent)
    assert len(expected) == 12
    sent.clear()
    with pytest.raises(Killed):
        run(scenario, broken, on_progress=killed_at(*at))
    assert RunFolder(broken).client_state.is_dir()
    run(scenario, broken, resume=True)
    assert equal(sent, expected)
    assert outcome_of(broken) == outcome_of(tmp_path / "whole")
    names = ["broken", "broken.client-state", "whole", "whole.client-state"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_run_that_goes_on_with_more_rounds_sends_what_a_longer_one_sends(
    tiny: Tiny, sent: Sent, outcome_of: OutcomeOf, tmp_path: Path
) -> None:
    scenario = tiny(*KEEPING)
    longer = scenario.with_changes({"rounds": scenario.rounds + 2})
    run(longer, tmp_path / "whole")
    expected = dict(sent)
    sent.clear()
    run(scenario, tmp_path / "in two")
    assert len(sent) < len(expected)
    run(longer, tmp_path / "in two", resume=True)
    assert equal(sent, expected)
    assert outcome_of(tmp_path / "in two") == outcome_of(tmp_path / "whole")


def test_what_is_kept_matters(tiny: Tiny, sent: Sent, tmp_path: Path) -> None:
    """The test above would pass with a defense that forgets; this one wouldn't."""
    run(tiny(*KEEPING), tmp_path / "whole")
    expected = dict(sent)
    with pytest.raises(Killed):
        run(tiny(*KEEPING), tmp_path / "broken", on_progress=killed_at(4, 1))
    shutil.rmtree(RunFolder(tmp_path / "broken").client_state)
    run(tiny(*KEEPING), tmp_path / "broken", resume=True)
    assert not equal(sent, expected)


def test_a_new_run_finds_nothing_of_one_that_is_gone(
    tiny: Tiny, sent: Sent, tmp_path: Path
) -> None:
    run(tiny(*KEEPING), tmp_path / "whole")
    expected = dict(sent)
    with pytest.raises(Killed):
        run(tiny(*KEEPING), tmp_path / "run", on_progress=killed_at(4, 1))
    shutil.rmtree(tmp_path / "run")
    run(tiny(*KEEPING), tmp_path / "run")
    assert equal(sent, expected)


def test_a_round_that_was_never_committed_leaves_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome_of: OutcomeOf
) -> None:
    """Client 0 trains in round 3, which is lost, and fails when that round is run again."""
    scenario = tiny(*KEEPING[:1], *KEEPING[2:])

    def fail(scenario: Scenario, number: int, server_round: int, *rest: Any) -> Any:
        if (number, server_round) == (0, 3):
            raise RuntimeError("out of battery")
        return train_locally(scenario, number, server_round, *rest)

    with pytest.raises(Killed):
        run(scenario, tmp_path / "broken", on_progress=killed_at(3, 1))
    monkeypatch.setattr(client, "train_locally", fail)
    run(scenario, tmp_path / "broken", resume=True)
    run(scenario, tmp_path / "whole")
    assert outcome_of(tmp_path / "broken") == outcome_of(tmp_path / "whole")


def test_a_defense_that_keeps_nothing_writes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    seen = []

    def on_progress(*_: int) -> None:
        seen.append(RunFolder(tmp_path / "run").client_state.exists())

    stages = '[{name="third_party:Averages"}, '
    stages += '{name="dp-noise", clipping_norm=1.0, noise_multiplier=0.1}]'
    run(tiny(f"defense={stages}"), tmp_path / "run", on_progress=on_progress)
    assert set(seen) == {False}


RULE = "TypeError: state must map names to dense tensors, found"
UNSAVED = "UserError: client 0's state can't be saved:"


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("a list", f"{RULE} list"),
        ("a number", f"{RULE} 'seen': int"),
        ("no name", f"{RULE} '': torch.strided torch.float32 on cpu"),
        ("a sparse tensor", f"{RULE} 'w': torch.sparse_coo torch.float32 on cpu"),
        ("a surrogate", f"{UNSAVED} UnicodeEncodeError: 'utf-8' codec can't encode"),
        ("complex numbers", f"{UNSAVED} KeyError: torch.complex128"),
    ],
)
def test_a_state_that_cannot_be_kept_costs_its_reply(
    tiny: Tiny, tmp_path: Path, what: str, sentence: str
) -> None:
    """Client 1 returns the same, and nobody's run ends."""
    run(tiny(f'defense=[{{name="third_party:Keeps", what="{what}"}}]', "rounds=2"), tmp_path)
    reasons = {
        (r["round"], r["client"]): r["label_reason"] for r in read_lines(tmp_path / "leakage.jsonl")
    }
    assert reasons[1, 0] is None
    assert reasons[2, 0].startswith(f"reply left out: the client failed: {sentence}")
    assert "\n" not in reasons[2, 0]
    assert [line["quarantined"] for line in read_lines(tmp_path / "rounds.jsonl")] == [0, 0, 3]


def ask(
    scenario: Scenario, folders: dict[str, str], node: dict[str, str], server_round: int = 1
) -> Message:
    """Have client 2 train, as a server would."""
    grid = LocalGrid(client.app, 3, {"scenario": scenario.to_json(), **folders})
    grid._contexts[3].node_config.update(node)
    start = to_arrays(wire_tensors(Federation.of(scenario).build_model(), scenario.client.mode))
    content = RecordDict({"arrays": start, "config": ConfigRecord({"server-round": server_round})})
    [reply] = grid.send_and_receive([Message(content, dst_node_id=3, message_type="train")])
    return reply


def test_nothing_that_is_kept_is_on_the_wire(tiny: Tiny, tmp_path: Path) -> None:
    reply = ask(tiny(*KEEPING), {"client-state": str(tmp_path)}, {})
    assert set(reply.content) == {"arrays", "metrics"}
    assert set(reply.content.array_records["arrays"]) == {"2.weight", "2.bias"}
    assert set(reply.content.metric_records["metrics"]) == {"num-examples", "train-loss"}


def test_a_node_may_have_a_folder_of_its_own(tiny: Tiny, tmp_path: Path) -> None:
    run_folder, own = tmp_path / "run", tmp_path / "own"
    scenario = tiny(*KEEPING)
    ask(scenario, {"client-state": str(run_folder)}, {"client-state": str(own)})
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
    files = [path.relative_to(own) for path in own.rglob("*.safetensors")]
    assert files == [Path(scenario.digest()) / "client-00002" / "round-00001.safetensors"]


def test_a_client_without_a_folder_answers_with_an_error(tiny: Tiny) -> None:
    reply = ask(tiny(*KEEPING), {}, {})
    assert reply.has_error()
    assert reply.error.reason == (
        "UserError: client 2 must have a folder for what its defenses keep: client-state of its "
        "node's or the run's configuration, found none"
    )
