"""A run and a sweep, each made once, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fl_sim.flower.run import run
from fl_sim.scenario import Scenario
from fl_sim.sweep.folder import Ended, SweepFolder
from fl_sim.sweep.grid import Axis, Grid

Tiny = Callable[..., Scenario]


@pytest.fixture(scope="session")
def run_folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny run."""
    return run(tiny(), tmp_path_factory.mktemp("run") / "tiny")


@pytest.fixture(scope="session")
def sweep_folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep over learning rate and defense: six runs finished, one failed, one owed."""
    axes = [Axis.parse("client.lr=0.05,0.1"), Axis.parse('defense=[],[{name="label-smoothing"}]')]
    grid = Grid.of(tiny(), axes, zipped=False, seeds=2)
    path = tmp_path_factory.mktemp("sweeps") / "sweep"
    with SweepFolder.open(path, grid, resume=False) as folder:
        runs = grid.runs()
        for one in runs[:6]:
            run(one.scenario, folder.run_folder(one))
            folder.note(Ended(one.name, None, is_finished=True, seconds=1.0))
        folder.note(Ended(runs[6].name, "it <failed>", is_finished=False, seconds=1.0))
    return path
