"""Sweeps run side by side, survive a kill, and write down what fails."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_sim.errors import UserError
from fl_sim.flower.run import run
from fl_sim.scenario import Scenario
from fl_sim.sweep import run_sweep
from fl_sim.sweep.folder import Ended, SweepFolder
from fl_sim.sweep.grid import Axis, Grid
from fl_sim.sweep.pool import THREADS, Pool

HERE = Path(__file__).parents[1]
FlSim = Callable[..., Any]
Tiny = Callable[..., Scenario]
OutcomeOf = Callable[[Path], dict[str, str | bytes]]


def grid_of(base: Scenario, *over: str, seeds: int = 1) -> Grid:
    return Grid.of(base, [Axis.parse(one) for one in over], zipped=False, seeds=seeds)


@pytest.fixture(scope="module")
def swept(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepFolder, list[Any]]:
    """Sweep once: cells that are well, and one whose model ends its process in training."""
    told: list[Any] = []
    names = ("linear", "EndsItsProcess", "bottleneck", "TellsThreads")
    over = f"model.name={','.join(f'third_party:{name}' for name in names)}"
    folder = run_sweep(
        grid_of(tiny("rounds=1"), over),
        tmp_path_factory.mktemp("sweep") / "here",
        jobs=1,
        on_progress=lambda *progress: told.append(progress),
    )
    return folder, told


def test_a_run_that_fails_is_written_down_and_the_sweep_goes_on(
    swept: tuple[SweepFolder, list[Any]],
) -> None:
    folder, told = swept
    ended = folder.ended()
    assert [ended[f"cell-{n}-seed-3"].is_finished for n in range(4)] == [True, False, True, True]
    sentence = ended["cell-1-seed-3"].sentence
    assert sentence == "its process was ended with status 7 before the last round"
    assert [run.name for run in folder.owed()] == ["cell-1-seed-3"]
    assert told[0] == (0, 4, None)
    assert told[-1][:2] == (3, 4)


def test_a_run_of_a_sweep_is_as_it_would_be_alone(
    swept: tuple[SweepFolder, list[Any]], tmp_path: Path, outcome_of: OutcomeOf
) -> None:
    folder, _ = swept
    for one in (folder.grid.runs()[0], folder.grid.runs()[2]):
        assert outcome_of(folder.run_folder(one)) == outcome_of(
            run(one.scenario, tmp_path / one.name)
        )


def test_a_run_says_how_much_memory_it_took(swept: tuple[SweepFolder, list[Any]]) -> None:
    peak = swept[0].ended()["cell-0-seed-3"].peak_bytes
    assert peak is not None
    assert 1e8 < peak < 1e11


def test_what_would_be_wrong_later_is_found_before_the_first_run(
    tiny: Tiny, tmp_path: Path
) -> None:
    grid = grid_of(tiny(), "client.batch_size=1,21")
    with pytest.raises(UserError, match=r"client.batch_size=21, seed=3: client.batch_size must be"):
        run_sweep(grid, tmp_path / "sweep", jobs=1)
    assert not (tmp_path / "sweep").exists()


@pytest.fixture
def begun(tiny: Tiny, tmp_path: Path) -> Path:
    """Return a sweep's folder in which no run has begun."""
    grid = grid_of(tiny(), "client.lr=0.1,0.2", seeds=2)
    with SweepFolder.open(tmp_path / "sweep", grid, resume=False):
        return tmp_path / "sweep"


MISTAKES = [
    (["client.lr=0.1,0.3"], 2, True, "another sweep: over.0.values.1 is 0.2 there and is 0.3 here"),
    (["client.lr=0.1"], 2, True, "over.0.values.1 is 0.2 there and isn't set here"),
    (["client.lr=0.1,0.2", "rounds=1"], 2, True, "another sweep: over.1"),
    (["client.lr=0.1,0.2"], 2, False, "holds this sweep already; go on with --resume"),
]


@pytest.mark.parametrize(("over", "seeds", "resume", "sentence"), MISTAKES)
def test_another_sweeps_folder_is_refused(
    tiny: Tiny, begun: Path, over: list[str], seeds: int, resume: bool, sentence: str
) -> None:
    before = (begun / "sweep.json").read_bytes()
    with pytest.raises(UserError) as raised:
        run_sweep(grid_of(tiny(), *over, seeds=seeds), begun, jobs=1, resume=resume)
    assert sentence in str(raised.value)
    assert (begun / "sweep.json").read_bytes() == before


def test_another_base_is_another_sweep(tiny: Tiny, begun: Path) -> None:
    with pytest.raises(UserError, match=r"another sweep: scenario.rounds is 3 there and is 4 here"):
        run_sweep(grid_of(tiny("rounds=4"), "client.lr=0.1,0.2", seeds=2), begun, resume=True)


def test_a_folder_of_something_else_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"must be empty or hold a sweep; it holds 'thesis.tex'"):
        run_sweep(grid_of(tiny()), tmp_path, resume=True)


def test_a_sweep_grows_by_seeds_and_never_loses_any(tiny: Tiny, begun: Path) -> None:
    for seeds, expected in ((3, 6), (1, 6)):
        grid = grid_of(tiny(), "client.lr=0.1,0.2", seeds=seeds)
        with SweepFolder.open(begun, grid, resume=True) as folder:
            assert len(folder.grid.runs()) == expected


def test_a_finished_run_whose_folder_is_gone_is_owed_again(begun: Path) -> None:
    folder = SweepFolder.read(begun)
    first, second = folder.grid.runs()[:2]
    for run_ in (first, second):
        folder.note(Ended(run_.name, None, is_finished=True, seconds=1.0))
    folder.run_folder(first).mkdir()
    assert first not in folder.owed()
    assert second in folder.owed()


def test_a_torn_journal_costs_its_last_line(tiny: Tiny, begun: Path) -> None:
    folder = SweepFolder.read(begun)
    folder.note(Ended("cell-0-seed-3", "no luck", is_finished=False, seconds=1.0))
    with (begun / "runs.jsonl").open("a") as file:
        file.write('{"run": "cell-1-')
    assert set(folder.ended()) == {"cell-0-seed-3"}
    with SweepFolder.open(begun, folder.grid, resume=True) as again:
        again.note(Ended("cell-1-seed-3", None, is_finished=True, seconds=1.0))
    assert set(folder.ended()) == {"cell-0-seed-3", "cell-1-seed-3"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scenario": {"rounds": 0}}', '{"scenario": 3}'])
def test_a_broken_description_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"sweep.json isn't"):
        SweepFolder.read(tmp_path)


def test_a_folder_that_a_sweep_works_in_is_left_alone(tiny: Tiny, begun: Path) -> None:
    grid = SweepFolder.read(begun).grid
    with (
        SweepFolder.open(begun, grid, resume=True),
        pytest.raises(UserError, match="is in use by another"),
        SweepFolder.open(begun, grid, resume=True),
    ):
        pass


def test_runs_wait_for_memory_but_never_for_good(
    monkeypatch: pytest.MonkeyPatch, begun: Path
) -> None:
    """With no memory free, a run begins only while no other does."""
    running: list[int] = [0]
    most = [0]

    def ask(self: object, scenario: str, folder: Path | None) -> dict[str, Any]:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.02)
        running[0] -= 1
        return {"sentence": None, "is_finished": True, "seconds": 0.0, "peak_bytes": 5}

    monkeypatch.setattr("fl_sim.sweep.pool.Worker.ask", ask)
    monkeypatch.setattr("fl_sim.sweep.pool.processors", lambda: 2)
    monkeypatch.setattr("fl_sim.sweep.pool.Worker.start", lambda self: None)
    monkeypatch.setattr("fl_sim.sweep.pool.free_bytes", lambda: next(free))
    free = itertools.chain([1 << 40], itertools.repeat(0))  # enough, until the first run begins
    folder = SweepFolder.read(begun)
    for jobs, expected in ((None, 1), (2, 2)):  # who says how many is taken at their word
        most[0] = 0
        with Pool(jobs, 4) as pool:
            assert len(list(pool.do(folder, folder.grid.runs()))) == 4
        assert most[0] == expected


def test_a_run_computes_on_one_thread(swept: tuple[SweepFolder, list[Any]]) -> None:
    log = swept[0].path / "runs" / "cell-3-seed-3.log"
    told = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert told
    expected = {"torch": 1, **dict.fromkeys(THREADS, "1")}
    assert all(one == expected for one in told)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(
    tiny_file: Path, tmp_path: Path, outcome_of: OutcomeOf
) -> None:
    arguments = ["sweep", str(tiny_file), "--over", "client.lr=0.05,0.1", "--over", "rounds=2,30"]
    arguments += ["--seeds", "2", "--jobs", "2"]
    command = [sys.executable, "-c", "from fl_sim.cli import main; main()", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}

    def sweep(out: Path, *more: str) -> subprocess.Popen[bytes]:
        whole = [*command, "--out", str(out), *more]
        return subprocess.Popen(whole, env=environment, cwd=tmp_path)

    killed = sweep(tmp_path / "killed")
    journal = tmp_path / "killed" / "runs.jsonl"
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    finished = {line["run"] for line in map(json.loads, journal.read_text().splitlines())}
    assert 2 <= len(finished) < 8
    stamps = {name: _stamps(tmp_path / "killed" / "runs" / name) for name in finished}
    assert sweep(tmp_path / "killed", "--resume").wait() == 0
    assert {name: _stamps(tmp_path / "killed" / "runs" / name) for name in finished} == stamps
    assert sweep(tmp_path / "whole").wait() == 0
    for run_ in (tmp_path / "whole" / "runs").iterdir():
        assert outcome_of(run_) == outcome_of(tmp_path / "killed" / "runs" / run_.name)


def _stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_command_line_tells_a_mistake_before_anything_runs(
    fl_sim: FlSim, tiny_file: Path, tmp_path: Path
) -> None:
    for arguments, sentence in (
        (["--over", "client.lrr=1"], "unknown key 'client.lrr'"),
        (["--over", "client.lr=1,2", "--over", "rounds=1", "--zip"], "--zip takes as many values"),
        (["--jobs", "none"], "--jobs must be auto or a whole number of at least 1, found 'none'"),
        (["--jobs", "0"], "--jobs must be auto"),
        (["--resume"], "nothing to resume"),
    ):
        ended = fl_sim("sweep", tiny_file, *arguments, "--out", tmp_path / "sweep")
        assert ended.status == 2
        assert ended.stdout == ""
        assert ended.stderr.startswith("fl-sim: ")
        assert ended.stderr.count("\n") == 1
        assert sentence in ended.stderr
        assert not (tmp_path / "sweep").exists()
