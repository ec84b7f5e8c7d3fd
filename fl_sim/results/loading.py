"""The ways to a run as data: read one, or run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fl_sim.errors import UserError
from fl_sim.results.comparison import Comparison
from fl_sim.results.recorded import RecordedRun
from fl_sim.results.run_result import RunResult
from fl_sim.results.sweep_result import SweepResult
from fl_sim.sweep.folder import is_sweep

if TYPE_CHECKING:
    from fl_sim.scenario import Scenario


def load(path: str | Path) -> RunResult | SweepResult:
    """Read a run folder or a sweep's folder, finished or not.

    Raises:
        UserError: it is neither, or one of its files isn't what it should be.

    Example:
        >>> import tempfile
        >>> from fl_sim import Scenario
        >>> changes = {"rounds": 1, "data.clients": 2, "data.test_examples": 10}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = run(Scenario().with_changes(changes), Path(folder) / "run")
        ...     load(Path(folder) / "run").rounds["round"].tolist()
        [0, 1]
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} doesn't exist or isn't a folder")
    if is_sweep(path):
        return SweepResult(path, Comparison.of_sweep(path))
    return RunResult(path, RecordedRun.read(path))


def run(
    scenario: Scenario,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> RunResult:
    """Run a scenario, and return what it recorded.

    Args:
        scenario: what to run.
        out: a folder that is new or empty, or holds this run when `resume` is set; None takes
            `runs/<name>-<n>`, as `fl-sim run` does.
        resume: go on after the last committed round; a folder without a run starts one.
        on_progress: called with (server round, replies so far, clients in the round).

    Raises:
        UserError: the scenario can't be run, or the folder holds something else.
        EngineError: the engine's processes ended before the last round.
        NothingAccepted: no client's reply could be used in any round; the run is complete, and
            `load` reads it.

    Example:
        >>> import tempfile
        >>> from fl_sim import Scenario
        >>> attack = {"label": "soft-label", "image": "analytic"}
        >>> changes = {"rounds": 1, "data.clients": 2, "data.test_examples": 10, "attack": [attack]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = run(Scenario().with_changes(changes), Path(folder) / "run")
        >>> result.leakage["label_status"].tolist(), result.attacks["labels_right"].tolist()
        (['RECOVERED', 'RECOVERED'], [1.0])
    """
    from fl_sim.flower.run import run as run_scenario  # PyTorch and Flower take seconds
    from fl_sim.terminal.folders import folder_to_resume, new_folder

    if out is None:
        named = folder_to_resume if resume else new_folder
        out = named(scenario.name, None)
    folder = run_scenario(scenario, Path(out), resume=resume, on_progress=on_progress)
    return RunResult(folder, RecordedRun.read(folder))
