"""Runs that keep captures, and what became of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

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
