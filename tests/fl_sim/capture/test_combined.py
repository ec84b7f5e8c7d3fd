"""`combine = "rounds"`: an attack that takes a run's rounds together, after the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fl_sim.capture.attack import OfflineAttack
from fl_sim.capture.backlog import Backlog
from fl_sim.capture.pending import PendingRounds
from fl_sim.capture.update import in_short
from fl_sim.errors import UserError
from fl_sim.flower.run import run
from fl_sim.leakage.records import read_lines
from fl_sim.run_folder import RunFolder
from fl_sim.scenario import Scenario


def scenario_of(**changes: Any) -> Scenario:
    combined = {"label": "soft-label", "image": "analytic", "attacker": "aware"}
    values: dict[str, Any] = {
        "rounds": 3,
        "data": {"name": "mnist-5k", "clients": 2, "examples_per_client": 1, "test_examples": 10},
        "client": {"batch_size": 1, "lr": 0.01},
        "server": {"capture": True, "attack_jobs": 1},
        "defense": [{"name": "dp-noise", "noise_std": 1e-5}],
        "attack": [combined | {"combine": "rounds", "rounds": [1, 3]}, {"label": "idlg"}],
    }
    return Scenario.parse(values | changes)


def without_seconds(folder: Path) -> list[dict[str, Any]]:
    lines = read_lines(folder / "leakage.jsonl")
    return [{k: v for k, v in line.items() if not k.endswith("_seconds")} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the records of a run that nobody kills, whose attacks other processes work off."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(scenario_of(), folder)
    return without_seconds(folder)


@pytest.mark.usefixtures("here")
def test_a_client_has_one_record_that_names_its_rounds_and_replays(
    tmp_path: Path, whole: list[dict[str, Any]]
) -> None:
    run(scenario_of(), tmp_path / "run")
    records = without_seconds(tmp_path / "run")
    assert records == whole
    combined = [record for record in records if record["attack"] == 0]
    assert [(r["round"], r["client"], r["rounds"]) for r in combined] == [
        (3, 0, "1, 3"),
        (3, 1, "1, 3"),
    ]
    assert {r["rounds"] for r in records if r["attack"] == 1} == {None}
    assert all(r["psnr_db"] is not None for r in combined), combined
    OfflineAttack.of(tmp_path / "run").work_off(tmp_path / "again", jobs=1)
    assert without_seconds(tmp_path / "again") == records


@pytest.mark.usefixtures("here")
def test_a_record_names_the_round_that_went_unperturbed(tmp_path: Path) -> None:
    outpost = {"name": "outpost", "beta": 1e9}  # perturbs the first round alone
    attack = {"image": "analytic", "combine": "rounds"}
    both = [attack | {"attacker": who} for who in ("unaware", "aware")]
    run(scenario_of(defense=[outpost], attack=both), tmp_path / "run")
    records = without_seconds(tmp_path / "run")
    assert {r["rounds"] for r in records if r["attacker"] == "unaware"} == {"1-3"}
    aware = [r for r in records if r["attacker"] == "aware"]
    assert {r["rounds"] for r in aware} <= {"2", "3"}
    assert {r["image_status"] for r in aware} == {"RECOVERED"}
    assert all(r["feature_error"] < 1e-3 for r in aware)
    assert {r["unused_facts"] for r in aware} == {None}


class Killed(BaseException):
    """Ends a run where it stands; nobody catches it."""


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("server_round", [2, 3])
@pytest.mark.parametrize(
    ("kind", "step"),
    [(RunFolder, "commit"), (PendingRounds, "keep"), (Backlog, "go_on"), (Backlog, "settle")],
    ids=["before-the-commit", "before-what-is-owed", "behind-the-commit", "all-owed"],
)
def test_a_killed_run_goes_on_to_the_same_records(
    kind: type, step: str, server_round: int, tmp_path: Path, whole: list[dict[str, Any]]
) -> None:
    original = getattr(kind, step)

    def ended(self: Any, *arguments: Any) -> Any:
        found = arguments[0] if arguments else server_round
        if (found["round"] if isinstance(found, dict) else found) == server_round:
            raise Killed
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, step, ended)
        with pytest.raises(Killed):
            run(scenario_of(), tmp_path / "run")
    run(scenario_of(), tmp_path / "run", resume=True)
    assert without_seconds(tmp_path / "run") == whole


@pytest.mark.usefixtures("here")
def test_canaries_are_not_attacked(tmp_path: Path) -> None:
    values = scenario_of().model_dump(mode="json")
    data, audit = values["data"] | {"clients": 6}, values["audit"] | {"canaries": 5}
    run(Scenario.parse(values | {"data": data, "audit": audit}), tmp_path / "run")
    records = without_seconds(tmp_path / "run")
    assert {record["client"] for record in records} == {0}
    OfflineAttack.of(tmp_path / "run").work_off(tmp_path / "again", jobs=1)
    assert without_seconds(tmp_path / "again") == records


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"server": {}}, "needs server.capture = true"),
        ({"client": {"batch_size": 1}, "data": {"clients": 2}}, "must train on all their examples"),
        ({"attack": [{"label": "idlg", "combine": "rounds"}]}, "takes one at a time"),
        ({"attack": [{"combine": "rounds", "when": "round"}]}, "after the last one"),
    ],
    ids=["no-captures", "drawn-anew", "one-round-attack", "in-the-round"],
)
def test_what_does_not_combine_is_one_sentence(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        run(scenario_of(**changes), tmp_path / "run")


@pytest.mark.usefixtures("here")
def test_a_run_that_combines_rounds_does_not_get_longer(tmp_path: Path) -> None:
    run(scenario_of(rounds=1, attack=[{"combine": "rounds"}]), tmp_path / "run")
    with pytest.raises(UserError, match="rounds is 1 there and is 2 here"):
        run(scenario_of(rounds=2, attack=[{"combine": "rounds"}]), tmp_path / "run", resume=True)


def test_rounds_are_written_in_short() -> None:
    assert in_short([1, 2, 3, 5, 7, 8]) == "1-3, 5, 7-8"
