"""Runs that keep captures, and what became of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_sim.capture import backlog
from fl_sim.capture.worker import attack
from fl_sim.flower.run import run
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]


def records(folder: Path) -> str:
    """Return a run's records without the seconds that they took."""
    return re.sub(r'"(\w+_)?seconds": [^,}]+', "", (folder / "leakage.jsonl").read_text())


@pytest.fixture(scope="session")
def records_of() -> Callable[[Path], str]:
    """Return a function from a run's folder to its records without seconds."""
    return records


@pytest.fixture(scope="session")
def captured(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that kept its captures: 3 rounds, 3 clients."""
    return run(tiny("server.capture=true"), tmp_path_factory.mktemp("captured"))


class Here:
    """Stands in for the processes: works off one job at a time, when somebody waits."""

    def __init__(self, count: int) -> None:
        self.jobs: list[Any] = []

    @property
    def unfinished(self) -> int:
        return len(self.jobs)

    def submit(self, job: Any, on_crash: Any) -> None:
        self.jobs.append(json.loads(json.dumps(job)))

    def wait_for_one(self) -> None:
        attack(self.jobs.pop())  # the last one first: the order of the log isn't that of the work

    def close(self) -> None:
        self.jobs.clear()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work off attacks in this process."""
    monkeypatch.setattr(backlog, "Workers", Here)
