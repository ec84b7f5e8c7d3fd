"""The ways to run a scenario: what an engine is, one file each, and their table in `fl_sim`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fl_sim.run_folder import RunFolder
from fl_sim.scenario import Scenario

__all__ = ["Engine", "OnProgress", "Outcome"]

OnProgress = Callable[[int, int, int], None]
"""Called with (server round, replies so far, clients in the round)."""


@dataclass(frozen=True)
class Outcome:
    """What an engine gives back of a run that reached its last round.

    Args:
        folder: the run folder, on the launcher's disk.
        nothing_accepted: one sentence if there were replies and none could be used in any round,
            rounds before the run was resumed included; None if one could.
    """

    folder: Path
    nothing_accepted: str | None = None

    @classmethod
    def of(cls, folder: RunFolder) -> Outcome:
        """Read it from the run folder; for engines whose server writes to the launcher's disk."""
        if not folder.lost_all_replies():
            return cls(folder.path)
        return cls(
            folder.path,
            "no reply was accepted in any round, so the model is the initial one; the report says "
            "why",
        )


class Engine(Protocol):
    """Runs the ClientApp and the ServerApp of a scenario, wherever it likes.

    An engine is a file in this folder and a line in `fl_sim.ENGINES`. Its server needn't share a
    disk with the launcher, who knows of a run what the engine tells, and looks nowhere else.
    """

    def __call__(
        self, scenario: Scenario, out: Path, *, resume: bool, on_progress: OnProgress | None
    ) -> Outcome:
        """Run a scenario to its last round.

        Args:
            scenario: what to run; the same seed gives the same records on every engine.
            out: the launcher's folder for the results, new or empty, or with this run in it when
                `resume` is set. An engine whose server writes elsewhere brings them here.
            resume: go on after the last committed round; without a run, start one.
            on_progress: to be called at least once a round, when it is committed, with all its
                clients as replies; rounds of an earlier run aren't told again.

        Returns:
            Where the results are, and whether all replies were lost. Nothing runs any more.

        Raises:
            UserError: the scenario can't be run, found before `out` is touched; or the folder
                holds something else.
            EngineError: it ended before the last round. What is committed is kept, so that
                `resume` goes on from there.
        """
