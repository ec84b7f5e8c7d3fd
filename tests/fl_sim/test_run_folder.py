"""A run folder keeps what was committed, refuses what isn't its own, and forgets the rest."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_sim.errors import UserError
from fl_sim.run_folder import RunFolder
from fl_sim.scenario import Scenario

WEIGHTS = {
    "z.weight": np.arange(6, dtype=np.float64).reshape(2, 3).T,  # not contiguous
    "a.temperature": np.array(1.5, dtype=np.float32),  # no dimension
    "m.empty": np.zeros((0, 2), np.float16),
}
STATE: dict[str, Any] = {
    "arrays": {"strategy/m_t/z": np.ones(3), "strategy/step": np.asarray(np.float64(7))},
    "values": {"eta": {"value": 0.1}},
    "lost": [],
}


def opened(path: Path, scenario: Scenario | None = None, *, resume: bool = False) -> Any:
    return RunFolder.open(path, scenario or Scenario(), resume=resume)


def commit(folder: RunFolder, server_round: int) -> None:
    weights = {name: array + server_round for name, array in WEIGHTS.items()}
    folder.log([f'{{"round": {server_round}, "client": 0}}'] if server_round else [])
    folder.commit({"round": server_round}, weights, STATE)


def files(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}


def test_a_new_folder_describes_its_run(tmp_path: Path) -> None:
    with opened(tmp_path / "a" / "b", Scenario(seed=5)) as folder:
        assert folder.last_round() is None
        assert folder.restore() is None
    description = json.loads((tmp_path / "a" / "b" / "scenario.json").read_text())
    assert Scenario.parse(description["scenario"]).seed == 5
    assert description["digest"] == Scenario(seed=5).digest()
    assert {"fl-sim", "flwr", "torch", "numpy", "python"} <= description["versions"].keys()


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        for server_round in range(3):
            commit(folder, server_round)
    with opened(tmp_path, resume=True) as folder:
        checkpoint = folder.restore()
    assert checkpoint is not None
    assert checkpoint.server_round == 2
    assert list(checkpoint.weights) == list(WEIGHTS)
    for found, expected in (
        (checkpoint.weights, {name: array + 2 for name, array in WEIGHTS.items()}),
        (checkpoint.state["arrays"], STATE["arrays"]),
    ):
        for name, array in expected.items():
            assert found[name].shape == np.shape(array)
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)
    assert checkpoint.state["values"] == STATE["values"]


def test_only_the_last_checkpoint_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        for server_round in range(3):
            commit(folder, server_round)
    kept = {name for name in files(tmp_path) if name.startswith("checkpoint/")}
    assert kept == {"checkpoint/round-00002.json", "checkpoint/round-00002.safetensors"}


@pytest.mark.parametrize("torn", ["", '{"round": 2', '{"round": 2}'], ids=repr)
def test_what_was_not_committed_is_cut(tmp_path: Path, torn: str) -> None:
    with opened(tmp_path) as folder:
        commit(folder, 0)
        commit(folder, 1)
        whole = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
        folder.log(['{"round": 2, "client": 0}', '{"round": 2, "client": 1}'])
        for log in (folder.rounds, folder.leakage):
            log.write_text(log.read_text() + torn)
        checkpoint = folder.restore()
        assert checkpoint is not None
        assert checkpoint.server_round == 1
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == whole


def test_before_the_first_commit_there_is_nothing_to_keep(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.log(['{"round": 1}'])
        (tmp_path / "rounds.jsonl").write_text('{"round": 0')
        assert folder.restore() is None
        assert folder.leakage.read_text() == folder.rounds.read_text() == ""


def test_the_same_run_goes_on_when_asked_to(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    with pytest.raises(UserError, match=r"holds this run already; go on with --resume"):
        opened(tmp_path).__enter__()
    with opened(tmp_path, Scenario(name="renamed", images=3), resume=True):
        pass


@pytest.mark.parametrize("resume", [False, True])
def test_another_run_is_refused(tmp_path: Path, resume: bool) -> None:
    with opened(tmp_path) as folder:
        commit(folder, 0)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(UserError, match="holds another run: seed is 0 there and is 1 here; choose"):
        opened(tmp_path, Scenario(seed=1), resume=resume).__enter__()
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def smoothing(*values: float) -> Scenario:
    stages = [{"name": "label-smoothing", "smoothing": value} for value in values]
    return Scenario.model_validate({"defense": stages})


@pytest.mark.parametrize(
    ("there", "here", "sentence"),
    [
        (smoothing(0.1), smoothing(0.2), "defense.0.smoothing is 0.1 there and is 0.2 here"),
        (smoothing(), smoothing(0.2), "defense.0 isn't set there and is {"),
        (smoothing(0.1, 0.2), smoothing(0.1), "defense.1 is {.*} there and isn't set here"),
        (
            smoothing(0.1),
            Scenario.model_validate({"defense": [{"name": "label-smoothing"}]}),
            "defense.0.smoothing is 0.1 there and isn't set here",
        ),
    ],
)
def test_the_key_that_differs_is_named(
    there: Scenario, here: Scenario, sentence: str, tmp_path: Path
) -> None:
    with opened(tmp_path, there):
        pass
    with pytest.raises(UserError, match=sentence):
        opened(tmp_path, here, resume=True).__enter__()


def test_the_same_run_goes_on_with_more_rounds(tmp_path: Path) -> None:
    with opened(tmp_path, Scenario(rounds=2)) as folder:
        commit(folder, 0)
    before = json.loads((tmp_path / "scenario.json").read_text())
    with opened(tmp_path, Scenario(rounds=5), resume=True) as folder:
        assert folder.last_round() == 0
    after = json.loads((tmp_path / "scenario.json").read_text())
    assert after == before | {"scenario": before["scenario"] | {"rounds": 5}}
    with pytest.raises(UserError, match=r"holds this run already; go on with --resume"):
        opened(tmp_path, Scenario(rounds=9)).__enter__()
    assert json.loads((tmp_path / "scenario.json").read_text()) == after


def test_a_run_never_gets_shorter(tmp_path: Path) -> None:
    with opened(tmp_path, Scenario(rounds=5)):
        pass
    with pytest.raises(UserError, match=r"rounds must be at least 5, as in .*, found 4"):
        opened(tmp_path, Scenario(rounds=4), resume=True).__enter__()
    with pytest.raises(UserError, match="seed is 0 there and is 1 here"):
        opened(tmp_path, Scenario(rounds=9, seed=1), resume=True).__enter__()


def test_an_audit_of_an_app_is_no_run_to_go_on_with(tmp_path: Path) -> None:
    (tmp_path / "scenario.json").write_text('{"kind": "audit", "scenario": {}}')
    with pytest.raises(UserError, match=r"holds the audit of an app, not a run; choose another"):
        opened(tmp_path, resume=True).__enter__()


@pytest.mark.parametrize("resume", [False, True])
def test_foreign_files_are_refused_and_stay(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(UserError, match=r"must be empty or hold a run; it holds 'thesis.tex'"):
        opened(tmp_path, resume=resume).__enter__()
    assert files(tmp_path) == {"thesis.tex"}


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", "scenario.json.tmp"]])
def test_what_a_kill_at_the_start_leaves_is_no_obstacle(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).touch()
    with opened(tmp_path, resume=True) as folder:
        commit(folder, 0)
    assert "scenario.json" in files(tmp_path)
    assert "scenario.json.tmp" not in files(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "\x00"])
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "scenario.json").write_text(text)
    with pytest.raises(UserError, match=r"scenario.json isn't a run's description"):
        opened(tmp_path, resume=True).__enter__()


def test_a_folder_is_one_process_s(tmp_path: Path) -> None:
    with opened(tmp_path):
        with pytest.raises(UserError, match="is in use by another run"):
            opened(tmp_path, resume=True).__enter__()
        with (tmp_path / ".lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with opened(tmp_path, resume=True):
        pass


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "no arrays": ("safetensors", Path.unlink),
    "cut arrays": ("safetensors", cut),
    "no arrays in the file": ("safetensors", lambda path: path.write_bytes(b"") and None),
    "no state": ("json", Path.unlink),
    "cut state": ("json", cut),
    "another state": ("json", lambda path: path.write_text("[1]") and None),
    "other arrays": ("json", lambda path: path.write_text('{"order": ["b"]}') and None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path, damage: str) -> None:
    suffix, do = DAMAGES[damage]
    with opened(tmp_path) as folder:
        commit(folder, 1)
        do(tmp_path / "checkpoint" / f"round-00001.{suffix}")
        with pytest.raises(UserError, match=r"checkpoint .*round-00001.safetensors can't be read"):
            folder.restore()


@pytest.mark.parametrize("log", ["rounds.jsonl", "leakage.jsonl"])
def test_a_damaged_log_is_one_sentence(tmp_path: Path, log: str) -> None:
    with opened(tmp_path) as folder:
        commit(folder, 1)
        commit(folder, 2)
        (tmp_path / log).write_text('{"round": 1}\nrubbish\n{"round": 2}\n')
        with pytest.raises(UserError, match=rf"{log}: line 2 must be a JSON object, found"):
            folder.restore()
