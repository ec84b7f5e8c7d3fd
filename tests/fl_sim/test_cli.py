"""The command line, with the simulation itself replaced by a short script."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS
from defenses import DEFENSES
from fl_sim import DATASETS, MODELS, TRACKERS
from fl_sim.cli import app
from fl_sim.errors import UserError
from fl_sim.scenario import Scenario
from fl_sim.scenario.source import scenario_file, shipped_scenarios


def fl_sim(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


class FakeSimulation:
    """Keeps what `run` was called with, writes a round, and then does what a test asks for."""

    def __init__(self) -> None:
        self.scenarios: list[Scenario] = []
        self.folders: list[Path] = []
        self.resumed: list[bool] = []
        self.then: Callable[[Path], None] = lambda folder: None

    def run(
        self,
        scenario: Scenario,
        out: Path,
        *,
        resume: bool = False,
        on_progress: Callable[[int, int, int], None] | None = None,
    ) -> Path:
        """Stand in for `fl_sim.flower.run.run`."""
        self.scenarios.append(scenario)
        self.folders.append(out)
        self.resumed.append(resume)
        assert out.is_dir()
        self.then(out)
        assert on_progress is not None
        for server_round in range(1, scenario.rounds + 1):
            for replies in range(scenario.data.clients + 1):
                on_progress(server_round, replies, scenario.data.clients)
        record = {"round": scenario.rounds, "accuracy": 0.8125}
        (out / "rounds.jsonl").write_text(json.dumps(record) + "\n")
        (out / "leakage.jsonl").write_text('{"round": 1}\n{"round": 2}\n')
        return out


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeSimulation:
    monkeypatch.chdir(tmp_path)
    fake = FakeSimulation()
    stand_ins: dict[str, Any] = {
        "fl_sim.flower.run": SimpleNamespace(run=fake.run),
        "fl_sim.report": SimpleNamespace(
            build_report=lambda out: out / "report.html",
            headline=lambda out: "It leaks.",
            notice=lambda out: None,
        ),
    }
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("fl_sim.leakage.table.table", lambda records: f"{len(records)} records")
    return fake


@pytest.fixture(autouse=True)
def _loggers_and_environment_stay(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    loggers = [logging.getLogger(name) for name in ("fl_sim", "flwr")]
    before = [(list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.level = handlers, level


def test_run_passes_the_scenario_and_prints_the_report_last(simulation: FakeSimulation) -> None:
    overrides = ["--set", "client.lr=0.5", "--set", "defense.0.smoothing=0.25", "--seed", "7"]
    result = fl_sim("run", "label-smoothing", *overrides)
    assert result.exit_code == 0, result.output
    (scenario,) = simulation.scenarios
    assert (scenario.name, scenario.seed, scenario.client.lr) == ("label-smoothing", 7, 0.5)
    assert scenario.defense[0].parameters == {"smoothing": 0.25}
    assert result.stdout.splitlines() == [
        "2 records",
        "It leaks.",
        "accuracy after round 10: 0.812",
        os.path.join("runs", "label-smoothing-1", "report.html"),
    ]
    assert result.stderr == ""


def test_a_long_path_is_not_wrapped(simulation: FakeSimulation, tmp_path: Path) -> None:
    out = tmp_path / ("long name " * 15) / "run"
    result = fl_sim("run", "baseline", "--out", str(out))
    assert result.stdout.splitlines()[-1] == str(out / "report.html")


def test_run_reads_a_file(simulation: FakeSimulation, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("rounds = 2\n")
    assert fl_sim("run", "mine.toml").exit_code == 0
    assert simulation.scenarios[0].rounds == 2
    assert simulation.folders == [Path("runs/mine-1")]


def test_runs_are_numbered_and_the_latest_is_resumed(simulation: FakeSimulation) -> None:
    for folder in ("runs/mixup-9", "runs/mixup-10", "runs/mixup-x", "runs/baseline-30"):
        Path(folder).mkdir(parents=True)
    fl_sim("run", "mixup")
    fl_sim("run", "mixup", "--resume")
    fl_sim("run", "mixup", "--resume", "--out", "runs/mixup-9")
    expected = [Path("runs/mixup-11"), Path("runs/mixup-11"), Path("runs/mixup-9")]
    assert simulation.folders == expected
    assert simulation.resumed == [False, True, True]


def test_name_of_a_scenario_cannot_leave_the_runs_folder(simulation: FakeSimulation) -> None:
    assert fl_sim("run", "baseline", "--set", "name=../../other").exit_code == 0
    assert simulation.folders[0].parent == Path("runs")


def test_rounds_are_logged_at_verbose_only(simulation: FakeSimulation) -> None:
    assert fl_sim("run", "baseline").stderr == ""
    verbose = fl_sim("run", "baseline", "-v", "--set", "rounds=3").stderr
    assert [line for line in verbose.splitlines() if "round 2 of 3" in line]
    assert verbose.count("of 3") == 3


def test_verbose_sets_the_level_of_flower(simulation: FakeSimulation) -> None:
    fl_sim("run", "baseline")
    assert logging.getLogger("flwr").level == logging.ERROR
    fl_sim("run", "baseline", "-v")
    assert logging.getLogger("flwr").level == logging.INFO


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "mixpu"], "unknown scenario 'mixpu'; did you mean 'mixup'?"),
        (["run", "./missing.toml"], "missing.toml can't be read"),
        (["run", "broken.toml"], "isn't valid TOML"),
        (["run", "mixup", "--set", "client.lrr=1"], "did you mean 'lr'?"),
        (["run", "mixup", "--set", "client.lr=-1"], "client.lr"),
        (["run", "mixup", "--set", "rounds"], "--set must be key.path=value, found 'rounds'"),
        (["run", "mixup", "--out", "full"], "--out full exists"),
        (["run", "mixup", "--out", "broken.toml"], "--out broken.toml exists"),
        (["run", "mixup", "--resume"], "nothing to resume: there is no runs/mixup-<n>"),
        (["run", "mixup", "--resume", "--out", "none"], "nothing to resume: none doesn't exist"),
        (["report", "none"], "run folder none doesn't exist"),
        (["show", "mixpu"], "unknown scenario 'mixpu'; did you mean 'mixup'?"),
        (["show", "broken.toml"], "unknown scenario 'broken.toml'; known: b"),
    ],
)
def test_a_mistake_is_one_sentence(
    simulation: FakeSimulation, arguments: list[str], sentence: str
) -> None:
    Path("broken.toml").write_text("rounds = \n")
    Path("full").mkdir()
    Path("full/file").touch()
    result = fl_sim(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("fl-sim: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert not simulation.folders
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", shipped_scenarios())
def test_a_shipped_scenario_is_shown_as_it_is(name: str, tmp_path: Path) -> None:
    result = fl_sim("show", name)
    assert (result.exit_code, result.stderr) == (0, "")
    (tmp_path / f"{name}.toml").write_text(result.stdout)
    with scenario_file(name) as path:
        assert result.stdout == path.read_text()
        assert Scenario.load(tmp_path / f"{name}.toml") == Scenario.load(path)


@pytest.mark.parametrize("arguments", [["rnu"], ["run"], ["run", "mixup", "--sed", "1"], ["list"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    result = fl_sim(*arguments)
    assert result.exit_code == 2
    assert "Usage: fl-sim" in result.stderr or "Usage: root" in result.stderr


def raises(error: BaseException) -> Callable[[Path], None]:
    def then(folder: Path) -> None:
        (folder / "leakage.jsonl").touch()
        raise error

    return then


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (
            KeyboardInterrupt(),
            130,
            "interrupted; the same command with --resume --out runs/mixup-1 goes on from there",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.png"),
            1,
            "x.png: No space left on device; the run folder is whole; free some space, then the "
            "same command with --resume --out runs/mixup-1 goes on from there",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "x: Permission denied"),
        (UserError("device must be there"), 2, "device must be there"),
        (
            RuntimeError("a\nbug"),
            1,
            "unexpected RuntimeError: a bug (fl-sim --debug shows where)",
        ),
    ],
)
def test_a_broken_run_says_how_to_go_on(
    simulation: FakeSimulation, error: BaseException, status: int, sentence: str
) -> None:
    simulation.then = raises(error)
    result = fl_sim("run", "mixup")
    assert (result.exit_code, result.stdout) == (status, "")
    assert result.stderr == f"fl-sim: {sentence}\n"


def test_debug_shows_the_traceback(simulation: FakeSimulation) -> None:
    simulation.then = raises(UserError("device must be there"))
    assert isinstance(fl_sim("--debug", "run", "mixup").exception, UserError)


def test_a_mistake_found_before_the_first_file_leaves_no_folder(simulation: FakeSimulation) -> None:
    def refuse(folder: Path) -> None:
        raise UserError("device must be there")

    simulation.then = refuse
    assert fl_sim("run", "mixup").exit_code == 2
    assert not list(Path("runs").iterdir())


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("attacks", [*LABEL_ATTACKS, *IMAGE_ATTACKS]),
        ("defenses", list(DEFENSES)),
        ("models", list(MODELS)),
        ("datasets", list(DATASETS)),
        ("trackers", list(TRACKERS)),
        ("scenarios", ["baseline", "dp-noise", "label-smoothing", "mixup"]),
    ],
)
def test_list_shows_every_name_with_its_summary(kind: str, names: list[str]) -> None:
    result = fl_sim("list", kind)
    assert result.exit_code == 0
    rows = {
        line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.split()
    }
    for name in names:
        assert len(rows[name]) > 3, f"{name}: a summary has at least four words, found {rows[name]}"


def test_version() -> None:
    assert fl_sim("--version").stdout == "fl-sim 0.1.0\n"


def test_report_builds_again(simulation: FakeSimulation, tmp_path: Path) -> None:
    assert fl_sim("report", str(tmp_path)).stdout == f"{tmp_path / 'report.html'}\n"


def test_telemetry_is_off_unless_the_user_chose(simulation: FakeSimulation) -> None:
    os.environ.pop("FLWR_TELEMETRY_ENABLED", None)
    fl_sim("run", "baseline")
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    os.environ["FLWR_TELEMETRY_ENABLED"] = "1"
    fl_sim("run", "baseline")
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "1"


@pytest.mark.e2e
@pytest.mark.parametrize("arguments", ["list attacks", "list scenarios", "run mixpu", "--help"])
def test_light_commands_import_neither_torch_nor_flower(arguments: str) -> None:
    program = (
        "import sys\n"
        "from fl_sim.cli import main\n"
        f"sys.argv = ['fl-sim', *{arguments.split()!r}]\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "assert not {'torch', 'flwr', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.e2e
def test_console_script_is_installed() -> None:
    script = Path(sys.executable).parent / "fl-sim"
    done = subprocess.run([script, "list", "defenses"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "label-smoothing" in done.stdout
