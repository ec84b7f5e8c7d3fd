"""Run a scenario, on whichever engine it names."""

from __future__ import annotations

from pathlib import Path

from fl_sim import ENGINES
from fl_sim.errors import NothingAccepted
from fl_sim.flower.engines import Engine, OnProgress
from fl_sim.scenario import Scenario


def run(
    scenario: Scenario,
    out: Path,
    *,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """Run a scenario and write its run folder; the report is made from that afterwards.

    Args:
        scenario: what to run.
        out: a folder that is new or empty, or holds this run when `resume` is set.
        resume: go on after the last committed round; a folder without a run starts one.
        on_progress: called with (server round, replies so far, clients in the round).

    Returns:
        The run folder.

    Raises:
        UserError: the scenario can't be run, or the folder holds something else.
        EngineError: the engine's processes ended before the last round.
        NothingAccepted: no client's reply could be used in any round; the run is complete.

    Example:
        >>> import tempfile
        >>> from fl_sim import Scenario
        >>> changes = {"rounds": 1, "data.clients": 2, "data.test_examples": 10}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     out = run(Scenario().with_changes(changes), Path(folder) / "run")
        ...     len((out / "rounds.jsonl").read_text().splitlines())
        2
    """
    engine: Engine = ENGINES[scenario.engine]
    outcome = engine(scenario, out, resume=resume, on_progress=on_progress)
    if outcome.nothing_accepted is not None:
        raise NothingAccepted(outcome.nothing_accepted, outcome.folder)
    return outcome.folder
