"""Flower's simulation on Ray: the records of `local`, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from fl_sim import __version__
from fl_sim.cli import app
from fl_sim.errors import EngineError, UserError
from fl_sim.federation import Federation
from fl_sim.flower.engines import ray as simulation_ray
from fl_sim.flower.engines.processes import MARK, stopped_at_exit
from fl_sim.flower.provenance import PACKAGES
from fl_sim.flower.run import run
from fl_sim.leakage.records import read_lines
from fl_sim.run_folder import RunFolder
from fl_sim.scenario import Scenario

ROOT = Path(__file__).parents[4]
Tiny = Callable[..., Scenario]
OutcomeOf = Callable[[Path], dict[str, str | bytes]]
LIMIT_SECONDS = 300.0  # Ray starts in half a minute; ten times that on a busy machine


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of all temporary folders, and see that no process of a run is left."""
    # tmp_path is too long for Ray's sockets.
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    monkeypatch.undo()
    left = list(processes_in(folder))
    for process in left:
        process.kill()
    folders = [entry.name for entry in folder.glob("fl-sim-*")]
    shutil.rmtree(folder)
    assert (left, folders) == ([], [])


def processes_in(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            places = (process.environ().get(MARK, "/"), process.cwd() or "/")
            if any(Path(place).is_relative_to(folder) for place in places):
                yield process


def kill_server(folder: Path) -> None:
    killed = [p for p in processes_in(folder) if "flwr-simulation" in " ".join(p.cmdline())]
    assert killed
    for process in killed:
        process.kill()


# --- Mistakes, found before Ray starts ---


def test_without_ray_it_says_so(
    tiny: Tiny, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation_ray, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="engine 'ray' needs Ray, which isn't installed"):
        run(tiny("engine=ray"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_named(
    tiny: Tiny, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv(simulation_ray.PORT_VARIABLE, str(port))
        with pytest.raises(UserError, match=f"must be a free port .*, found {port}: .* in use"):
            run(tiny("engine=ray"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("port", ["http", "70000", "-1"])
def test_a_port_must_be_one(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(simulation_ray.PORT_VARIABLE, port)
    with pytest.raises(UserError, match=f"must be a free port of this machine, found {port}"):
        simulation_ray._free_port()


def test_without_a_temporary_folder_it_says_so(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"needs a temporary folder .*: .*missing"):
        run(tiny("engine=ray"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_app_that_cannot_be_written_leaves_nothing(
    tiny: Tiny, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(simulation_ray.shutil, "copyfile", full)
    with pytest.raises(UserError, match=r"the Flower app can't be written to .*No space left"):
        run(tiny("engine=ray"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_run_is_refused_before_ray_starts(
    tiny: Tiny, tmp_path: Path, temporary: Path
) -> None:
    run(tiny(), tmp_path)
    with pytest.raises(UserError, match="holds another run"):
        run(tiny("engine=ray", "seed=4"), tmp_path, resume=True)
    with pytest.raises(UserError, match="go on with --resume"):
        run(tiny("engine=ray"), tmp_path)
    run(tiny("engine=ray"), tmp_path, resume=True)  # it is complete


def test_the_command_line_takes_the_engine_by_name() -> None:
    result = CliRunner().invoke(app, ["run", "baseline", "--engine", "spark"])
    assert result.exit_code == 2
    assert result.stderr.startswith("fl-sim: engine: must be 'local'")
    assert result.stderr.endswith(", found 'spark'\n")


# --- Parts ---


def test_the_app_holds_the_code_and_the_scenario(tiny: Tiny, tmp_path: Path) -> None:
    config = {"scenario": tiny('name="a \\"name\\", ü"').to_json(), "out": "/a b/c"}
    simulation_ray._write_app(tmp_path, config)
    described = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))
    assert described["tool"]["flwr"]["app"]["config"] == {"resume": True, **config}
    assert described["project"]["version"] == __version__
    for package in PACKAGES:
        files = {p.relative_to(ROOT) for p in (ROOT / package).rglob("*.py")}
        assert {p.relative_to(tmp_path) for p in (tmp_path / package).rglob("*.py")} == files
    assert (tmp_path / "scenarios" / "label-smoothing.toml").exists()
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} <= simulation_ray.BUNDLED


@pytest.mark.parametrize(
    ("log", "kind", "sentence"),
    [
        ("x\nfl_sim.errors.UserError: data is missing\nend", UserError, "data is missing"),
        (
            "Traceback\nRuntimeError: Simulation Runtime crashed.\n",
            EngineError,
            "Flower's simulation ended before the first round: RuntimeError: Simulation Runtime "
            "crashed.",
        ),
        (
            "Error: Failed to start local SuperLink within 15s.",
            EngineError,
            "Flower's simulation ended before the first round: Error: Failed to start local "
            "SuperLink within 15s.",
        ),
        (
            "INFO : round 1",
            EngineError,
            "Flower's simulation ended before the first round: its server process was killed",
        ),
    ],
)
def test_a_failure_is_one_sentence(
    log: str, kind: type[Exception], sentence: str, tmp_path: Path
) -> None:
    error = simulation_ray._failure(log, RunFolder(tmp_path))
    assert (type(error), str(error)) == (kind, sentence)


# --- Whole runs ---


KEEPING = 'defense=[{name="third_party:Velocity"}, {name="third_party:LargestEntries"}]'


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("defense", ["defense=[]", KEEPING], ids=["undefended", "keeping"])
def test_records_are_those_of_local_after_a_kill_of_the_server(
    tiny: Tiny, tmp_path: Path, temporary: Path, outcome_of: OutcomeOf, defense: str
) -> None:
    local, on_ray = tmp_path / "local", tmp_path / "ray"
    run(tiny("rounds=30", defense), local)
    told: list[tuple[int, int, int]] = []

    def kill_once(*progress: int) -> None:
        told.append(progress)  # type: ignore[arg-type]
        if progress == (2, 3, 3):
            kill_server(temporary)

    scenario = tiny("rounds=30", "engine=ray", defense)
    with pytest.raises(EngineError, match=r"ended after round \d+: its server process was killed"):
        run(scenario, on_ray, on_progress=kill_once)
    assert told[0] == (1, 0, 3)
    assert [progress for progress in told if progress[1]][:2] == [(1, 3, 3), (2, 3, 3)]
    assert list(processes_in(temporary)) == []
    committed = RunFolder(on_ray).last_round()
    assert committed is not None
    assert 2 <= committed < 30
    assert RunFolder(on_ray).client_state.exists() == (defense == KEEPING)
    run(scenario, on_ray, resume=True)
    assert outcome_of(on_ray) == outcome_of(local)
    names = {path.name.removesuffix(".client-state") for path in tmp_path.iterdir()}
    assert names == {"local", "ray"}


DEADLY = """
import os
from dataclasses import dataclass
from defenses import Defense

@dataclass(frozen=True)
class Deadly(Defense):
    brightness: float

    def on_batch(self, step, generator):
        if float(step.images.sum()) == self.brightness:
            os._exit(1)
        return step
"""


@pytest.mark.slow
@pytest.mark.e2e
def test_a_client_that_kills_its_process_costs_its_own_reply(
    tiny: Tiny, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    step = Federation.of(tiny()).client_batch(1, 2, 0)  # client 1 in round 2
    defense = {"name": "deadly:Deadly", "brightness": float(step.images.sum())}
    values = tiny("engine=ray").model_dump(mode="json")
    run(Scenario.parse({**values, "defense": [defense]}), tmp_path / "run")
    rounds = read_lines(tmp_path / "run" / "rounds.jsonl")
    assert [line["quarantined"] for line in rounds] == [0, 0, 1, 0]
    assert [line["replies"] for line in rounds] == [0, 3, 2, 3]
    left_out = [r for r in read_lines(tmp_path / "run" / "leakage.jsonl") if not r["label_attack"]]
    assert [(record["round"], record["client"]) for record in left_out] == [(2, 1)]
    assert re.match(r"reply left out: the client failed: .*Actor", left_out[0]["label_reason"])


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_command(
    way: signal.Signals, tiny_file: Path, tmp_path: Path, temporary: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fl_sim.cli", "run", str(tiny_file), "--engine", "ray"]
    command += ["--set", "rounds=100000", "--out", str(out)]
    environment = {
        **os.environ,
        "TMPDIR": str(temporary),
        "PYTHONPATH": os.pathsep.join([str(tiny_file.parent), os.environ.get("PYTHONPATH", "")]),
    }
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as started:
        wait_until(lambda: (RunFolder(out).last_round() or 0) >= 1)
        started.send_signal(way)
        _, errors = started.communicate(timeout=LIMIT_SECONDS)
    wait_until(lambda: not any(processes_in(temporary)) and not any(temporary.glob("fl-sim-*")))
    if way is signal.SIGINT:
        assert started.returncode == 130
        assert re.fullmatch(r"fl-sim: interrupted; the same command with --resume .*\n", errors)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Build this checkout's Flower app, and unpack it."""
    copy = tmp_path / "checkout"
    for package in (*PACKAGES, "scenarios"):
        shutil.copytree(
            ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    flwr = Path(sysconfig.get_path("scripts")) / "flwr"
    built = subprocess.run([flwr, "build"], cwd=copy, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = copy.glob("*.fab")
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(file).extractall(unpacked)
    shutil.rmtree(copy)
    return unpacked


@pytest.mark.e2e
def test_a_bundle_is_complete(bundle: Path) -> None:
    in_bundle = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    code = {p.relative_to(ROOT).as_posix() for q in PACKAGES for p in (ROOT / q).rglob("*.py")}
    scenarios = {p.relative_to(ROOT).as_posix() for p in (ROOT / "scenarios").glob("*.toml")}
    page = {f"fl_sim/report/{name}.html.md" for name in ("report", "style")}
    assert code | scenarios | page | {"LICENSE", "pyproject.toml"} <= in_bundle
    assert not [name for name in in_bundle if name.startswith(("tests", "docs", "examples"))]


@pytest.mark.slow
@pytest.mark.e2e
def test_a_bundle_runs_without_the_checkout(
    bundle: Path, tmp_path: Path, temporary: Path, outcome_of: OutcomeOf
) -> None:
    module = bundle / "fl_sim" / "__init__.py"
    text = module.read_text()
    module.write_text(text.replace(f'"{__version__}"', '"0.0.0+bundle"'))
    out = tmp_path / "run"
    folder = temporary / "flower"
    (folder / "flwr").mkdir(parents=True)
    environment = simulation_ray._environment(folder, simulation_ray._free_port())
    del environment["PYTHONPATH"]
    changes = 'set="data.clients=2; rounds=2"'
    command = [Path(sysconfig.get_path("scripts")) / "flwr", "run", str(bundle), "--stream"]
    command += ["--run-config", f'{changes} out="{out}"']
    with stopped_at_exit(folder, environment) as start:
        start(list(map(str, command)), log=tmp_path / "log").wait(LIMIT_SECONDS)
    log = (tmp_path / "log").read_text()
    assert RunFolder(out).last_round() == 2, log
    assert f"report: {out / 'report.html'}" in log
    assert "The server recovered the soft label of 4 of 4 examples" in (
        (out / "report.html").read_text()
    )
    described = json.loads((out / "scenario.json").read_text())
    assert described["versions"]["fl-sim"] == "0.0.0+bundle"
    run(Scenario.parse({**described["scenario"], "engine": "local"}), tmp_path / "local")
    assert outcome_of(out) == outcome_of(tmp_path / "local")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
