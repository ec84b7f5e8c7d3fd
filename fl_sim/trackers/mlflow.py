"""MLflow: a run's parameters, metrics and files, on a tracking server or in a local database."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fl_sim.results.varied import flattened
from fl_sim.trackers.base import TrackedRun, Tracker

try:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
except ImportError as error:
    raise ImportError("tracker 'mlflow' needs its package: pip install 'fl-sim[mlflow]'") from error

KEPT = "mlflow.json"
PARAMS_AT_ONCE, PARAM_LENGTH = 100, 500
"""MLflow's limits, of which the second is that of its older releases."""


class MLflow(Tracker):
    """Log a run as one of an MLflow experiment; a run that goes on goes on there, too.

    Args:
        uri: of the tracking server or database; None takes `MLFLOW_TRACKING_URI`, or MLflow's own
            default.
        experiment: its name; made if it is missing.
    """

    def __init__(self, *, uri: str | None = None, experiment: str = "fl-sim") -> None:
        if not experiment:
            raise ValueError("experiment must be a name, found ''")
        self._uri = uri
        self._experiment = experiment
        self._run = ""

    def start(self, run: TrackedRun) -> None:
        """Make a run with the scenario as its parameters, or open that of the run that goes on."""
        self._client = MlflowClient(tracking_uri=self._uri)
        kept = run.path / KEPT
        if run.committed is not None and kept.exists():
            self._run = json.loads(kept.read_text())["run_id"]
            self._client.update_run(self._run, status="RUNNING")
            return
        known = self._client.get_experiment_by_name(self._experiment)
        number = (
            self._client.create_experiment(self._experiment)
            if known is None
            else known.experiment_id
        )
        made = self._client.create_run(number, run_name=run.path.name)
        self._run = made.info.run_id
        kept.write_text(json.dumps({"run_id": self._run}))
        params = [
            Param(key, json.dumps(value)[:PARAM_LENGTH])
            for key, value in flattened(run.scenario).items()
        ]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(self._run, params=params[start : start + PARAMS_AT_ONCE])

    def log_round(self, server_round: int, numbers: Mapping[str, float]) -> None:
        """Log each number as a metric at the round's step."""
        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, server_round) for name, value in numbers.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def finish(self, files: Sequence[Path]) -> None:
        """Keep the run's files as artefacts, and say that it is finished."""
        for path in files:
            self._client.log_artifact(self._run, str(path))
        self._client.set_terminated(self._run)
