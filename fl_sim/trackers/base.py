"""What a tracker is: a class with three hooks, of which it overrides those that it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrackedRun:
    """The run that is followed.

    Args:
        path: the run folder, where a tracker may keep a file of its own under its own name.
        scenario: as `scenario.json` has it.
        committed: the last round of an earlier, interrupted part of the run; None without one.
            That round is told again, since the interruption may have come before it was.
    """

    path: Path
    scenario: Mapping[str, Any]
    committed: int | None


class Tracker:
    """Follows a run; each hook does nothing unless it is overridden.

    A tracker is built from its `[[tracker]]` table: what stands beside `name` are its keyword
    arguments. Building it writes nothing; a value that it refuses is a `ValueError`. A hook that
    raises costs a warning, and the tracker hears no more of this run.
    """

    def start(self, run: TrackedRun) -> None:
        """Hear of the run before its first round, or when it goes on."""

    def log_round(self, server_round: int, numbers: Mapping[str, float]) -> None:
        """Take a committed round's numbers; round 0 is the initial model.

        Args:
            server_round: from 0.
            numbers: what `rounds.jsonl` says of it, as in "accuracy" and "epsilon", and of each
                attack what leaked, as in "attack.0/labels_right", whose names are those of
                `fl_sim.results.measures.OF_ATTACKS`. What isn't known isn't there.
        """

    def finish(self, files: Sequence[Path]) -> None:
        """Take what the run left, after its last round: report, records, scenario."""
