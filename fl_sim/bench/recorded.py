"""Runs that benchmarks look at and don't keep."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fl_sim.flower.run import run
from fl_sim.results.recorded import RecordedRun
from fl_sim.scenario import Scenario


def recorded(scenario: Scenario) -> RecordedRun:
    """Run a scenario in a folder that is gone afterwards; return what it wrote down."""
    with tempfile.TemporaryDirectory() as folder:
        return RecordedRun.read(run(scenario, Path(folder) / "run"))
