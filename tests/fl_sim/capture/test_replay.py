"""A captured run that is attacked again, offline, gives the records that it gave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_sim.capture.attack import OfflineAttack
from fl_sim.capture.folder import find_captures
from fl_sim.errors import UserError
from fl_sim.flower.run import run
from fl_sim.scenario import Attack, Scenario

Tiny = Callable[..., Scenario]
RecordsOf = Callable[[Path], str]
FlSim = Callable[..., Any]


def attack_again(source: Path, out: Path, attack: Attack | None = None, **options: Any) -> Path:
    offline = OfflineAttack.of(source, attack, trusts=True, **options)
    return offline.work_off(out, jobs=1)


@pytest.mark.e2e
def test_a_captured_run_attacked_again_gives_its_records_and_a_report(
    fl_sim: FlSim, captured: Path, records_of: RecordsOf, tmp_path: Path
) -> None:
    done = fl_sim("attack", captured, "--trust", "--jobs", 2, "--out", tmp_path / "again")
    assert done.status == 0, done.stderr
    assert records_of(tmp_path / "again") == records_of(captured)
    assert "the label of 9 of 9 examples, as the judge knows" in done.stdout
    assert done.stdout.splitlines()[-1] == str(tmp_path / "again" / "report.html")
    assert (tmp_path / "again" / "report.html").exists()
    assert not (tmp_path / "again" / "pending").exists()
    assert {p.name for p in (tmp_path / "again" / "images").iterdir()} == {
        p.name for p in (captured / "images").iterdir()
    }


@pytest.mark.usefixtures("here")
def test_another_attack_gives_what_a_run_with_it_would_have_given(
    captured: Path, tiny: Tiny, records_of: RecordsOf, tmp_path: Path
) -> None:
    run(tiny("attack=[{label='soft-label', image='analytic'}]"), tmp_path / "inline")
    attack_again(captured, tmp_path / "again", Attack(label="soft-label", image="analytic"))
    assert records_of(tmp_path / "again") == records_of(tmp_path / "inline")


@pytest.mark.usefixtures("here")
def test_one_capture_of_a_run_is_judged_as_in_the_run(
    captured: Path, records_of: RecordsOf, tmp_path: Path
) -> None:
    file = captured / "captures" / "round-00002" / "client-00001.safetensors"
    attack_again(file, tmp_path / "again")
    [line] = records_of(tmp_path / "again").splitlines()
    assert line in records_of(captured).splitlines()


@pytest.mark.usefixtures("here")
def test_without_its_run_a_capture_holds_no_truth(captured: Path, tmp_path: Path) -> None:
    shutil.copytree(captured / "captures", tmp_path / "apart")
    attack_again(tmp_path / "apart", tmp_path / "again", Attack(label="third_party:Formula"))
    lines = (tmp_path / "again" / "leakage.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == 9
    assert {record["label_status"] for record in found} == {"RECOVERED"}
    assert {record["label_linf"] for record in found} == {None}
    with pytest.raises(UserError, match="--label must name a label attack"):
        OfflineAttack.of(tmp_path / "apart", trusts=True)


def test_weights_are_there_once_a_round(captured: Path) -> None:
    rounds = sorted((captured / "captures").iterdir())
    assert len(rounds) == 3
    for folder in rounds:
        assert len(list(folder.glob("weights-*"))) == 1
        assert len(list(folder.glob("client-*"))) == 3
    assert len(find_captures(captured)) == 9


def test_keeping_captures_changes_neither_records_nor_training(
    captured: Path, tiny: Tiny, outcome_of: Callable[[Path], Any], tmp_path: Path
) -> None:
    assert tiny("server.capture=true").digest() == tiny().digest()
    assert outcome_of(run(tiny(), tmp_path / "without")) == outcome_of(captured)


def test_a_run_without_attacks_keeps_captures_all_the_same(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny("server.capture=true", "attack=[]", "rounds=1"), tmp_path)
    assert len(find_captures(tmp_path)) == 3
    assert not (tmp_path / "leakage.jsonl").exists()


@pytest.mark.parametrize(
    "changes",
    [
        ["client.local_epochs=2", "client.batch_size=6", "data.examples_per_client=8"],
        ["client.mode=train", "model.name=third_party:batch_norm", "client.batch_size=4"],
        ["client.optimizer=adam", "client.local_steps=2"],
        ["client.momentum=0.5", "client.local_steps=2", "client.weight_decay=0.01"],
        ["model.name=third_party:AlwaysDrops", "model.bias=false"],
        ["defense=[{name='label-smoothing', smoothing=0.2}]", "attack.0.attacker=aware"],
    ],
    ids=["epochs", "batch-norm", "adam", "momentum", "draws-in-eval-mode", "aware"],
)
@pytest.mark.usefixtures("here")
def test_whatever_the_training_the_records_are_the_same(
    tiny: Tiny, records_of: RecordsOf, tmp_path: Path, changes: list[str]
) -> None:
    attacks = "attack=[{label='soft-label', image='analytic'}, {label='label-mass'}]"
    scenario = tiny(attacks, "rounds=2", "server.capture=true", *changes)
    run(scenario, tmp_path / "run")
    attack_again(tmp_path / "run", tmp_path / "again")
    assert records_of(tmp_path / "again") == records_of(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.e2e
def test_a_hundred_updates_replay_identically(
    fl_sim: FlSim, records_of: RecordsOf, tmp_path: Path
) -> None:
    inline = fl_sim(
        "run", "label-smoothing", "--set=server.capture=true", "--out", tmp_path / "run"
    )
    assert inline.status == 0, inline.stderr
    again = fl_sim("attack", tmp_path / "run", "--jobs", 2, "--out", tmp_path / "again")
    assert again.status == 0, again.stderr
    assert len(find_captures(tmp_path / "run")) == 100
    assert records_of(tmp_path / "again") == records_of(tmp_path / "run")
