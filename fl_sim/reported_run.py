"""Run a scenario, and build its report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fl_sim.errors import NothingAccepted

if TYPE_CHECKING:
    from fl_sim.scenario import Scenario


def run_and_report(
    scenario: Scenario,
    out: Path,
    *,
    resume: bool = False,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> Path:
    """Run a scenario, write its run folder and the report in it, as `fl-sim run` does.

    Args:
        scenario: what to run.
        out: a folder that is new or empty, or holds this run when `resume` is set.
        resume: go on after the last committed round; a folder without a run starts one.
        on_progress: called with (server round, replies so far, clients in the round).

    Returns:
        The path of `report.html`.

    Raises:
        UserError: the scenario can't be run, or the folder holds something else.
        EngineError: the engine's processes ended before the last round.
        NothingAccepted: no client's reply could be used in any round; the run is complete, and its
            report is built.

    Example:
        >>> import tempfile
        >>> from fl_sim import Scenario
        >>> changes = {"rounds": 1, "data.clients": 2, "data.test_examples": 10}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = run_and_report(Scenario().with_changes(changes), Path(folder) / "run")
        ...     report.name, report.exists()
        ('report.html', True)
    """
    # Both load late: they take seconds.
    from fl_sim.flower.run import run
    from fl_sim.report import build_report

    try:
        folder = run(scenario, out, resume=resume, on_progress=on_progress)
    except NothingAccepted as error:
        error.report = build_report(error.folder or out)
        raise
    return build_report(folder)
