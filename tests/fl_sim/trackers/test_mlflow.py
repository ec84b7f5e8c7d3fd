"""What MLflow is told: a client that keeps it, and once MLflow itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fl_sim.flower.run import run
from fl_sim.scenario import Scenario
from fl_sim.trackers.base import TrackedRun

Tiny = Callable[..., Scenario]
HERE = Path(__file__).parents[1]


class FakeClient:
    """The part of `MlflowClient` that the tracker uses, in memory."""

    def __init__(self) -> None:
        self.metrics: list[tuple[str, float, int]] = []
        self.params: dict[str, str] = {}
        self.files: list[str] = []
        self.calls: list[tuple[Any, ...]] = []

    def get_experiment_by_name(self, name: str) -> None:
        """Know none."""

    def create_experiment(self, name: str) -> str:
        """Make it."""
        self.calls.append(("experiment", name))
        return "7"

    def create_run(self, experiment_id: str, run_name: str) -> SimpleNamespace:
        """Make a run."""
        self.calls.append(("run", experiment_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

    def update_run(self, run_id: str, status: str) -> None:
        """Open a run again."""
        self.calls.append(("again", run_id, status))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        """Keep numbers."""
        assert len(params) <= 100
        self.metrics += [(one.key, one.value, one.step) for one in metrics]
        self.params |= {one.key: one.value for one in params}

    def log_artifact(self, run_id: str, path: str) -> None:
        """Keep a file's name."""
        self.files.append(Path(path).name)

    def set_terminated(self, run_id: str) -> None:
        """End."""
        self.calls.append(("end", run_id))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """Put a package of the same names in MLflow's place, which takes seconds to load."""
    fake = FakeClient()

    def entity(**names: str) -> Any:
        return lambda *values: SimpleNamespace(**dict(zip(names, values, strict=True)))

    entities = SimpleNamespace(
        Metric=entity(key="", value="", timestamp="", step=""), Param=entity(key="", value="")
    )
    package = SimpleNamespace(MlflowClient=lambda tracking_uri: fake, entities=entities)
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delitem(sys.modules, "fl_sim.trackers.mlflow", raising=False)
    return fake


def test_a_run_and_its_continuation_are_one(tiny: Tiny, tmp_path: Path, client: FakeClient) -> None:
    tracked = 'tracker=[{name="mlflow", experiment="mine"}]'
    run(tiny("rounds=1", tracked), tmp_path / "run")
    assert client.calls == [("experiment", "mine"), ("run", "7", "run"), ("end", "abc")]
    run(tiny("rounds=2", tracked), tmp_path / "run", resume=True)
    assert client.calls[3:] == [("again", "abc", "RUNNING"), ("end", "abc")]
    steps = [step for key, _, step in client.metrics if key == "accuracy"]
    assert steps == [0, 1, 1, 2]  # the last round of the first part is told again
    assert client.params["client.lr"] == "0.05"
    assert client.params["attack.0.label"] == '"third_party:Formula"'
    assert client.files[:2] == ["report.html", "scenario.json"]


def test_the_run_is_known_by_a_file_in_its_folder(tmp_path: Path, client: FakeClient) -> None:
    from fl_sim.trackers.mlflow import MLflow

    MLflow().start(TrackedRun(tmp_path, {"rounds": 1}, None))
    assert json.loads((tmp_path / "mlflow.json").read_text()) == {"run_id": "abc"}


@pytest.mark.slow
def test_mlflow_itself_takes_it(tiny_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    database = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = f'tracker=[{{name="mlflow", uri="{database}"}}]'
    program = (
        "from pathlib import Path\n"
        "from fl_sim.flower.run import run\n"
        "from fl_sim.scenario import Scenario\n"
        "from mlflow import MlflowClient\n"
        f"run(Scenario.load(Path({str(tiny_file)!r}), [{tracker!r}]), Path('run'))\n"
        f"client = MlflowClient(tracking_uri={database!r})\n"
        "(found,) = client.search_runs([client.get_experiment_by_name('fl-sim').experiment_id])\n"
        "history = client.get_metric_history(found.info.run_id, 'attack.0/labels_right')\n"
        "assert [(one.step, one.value) for one in history] == [(1, 1.0), (2, 1.0), (3, 1.0)]\n"
        "assert found.info.status == 'FINISHED'\n"
        "assert found.data.params['client.lr'] == '0.05'\n"
        "names = {one.path for one in client.list_artifacts(found.info.run_id)}\n"
        "assert names == {'report.html', 'scenario.json', 'leakage.jsonl', 'rounds.jsonl'}\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
