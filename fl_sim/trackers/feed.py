"""What a run tells its trackers: each round, once it is committed, as its files have it."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any

from fl_sim import TRACKERS
from fl_sim.errors import NothingAccepted, UserError
from fl_sim.leakage.leaks import Record
from fl_sim.results.measures import of_attacks
from fl_sim.trackers.base import TrackedRun, Tracker

logger = logging.getLogger(__name__)
FILES = ("report.html", "scenario.json", "leakage.jsonl", "rounds.jsonl")


def build_trackers(stages: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, Tracker]]:
    """Build trackers from names and options.

    Raises:
        UserError: a name is unknown, its package isn't installed, or it refuses an option.
    """
    try:
        built = [(name, TRACKERS.build(name, **options)) for name, options in stages]
    except (ImportError, ValueError) as error:
        raise UserError(str(error)) from error
    for name, tracker in built:
        if not isinstance(tracker, Tracker):
            raise UserError(f"tracker {name!r} must make a Tracker, found {type(tracker).__name__}")
    return built


class Feed:
    """Tells trackers of a run; a tracker that raises costs a warning, and is told no more.

    Args:
        trackers: with their names.
        folder: the run folder.
    """

    def __init__(self, trackers: Sequence[tuple[str, Tracker]], folder: Path) -> None:
        self._trackers = list(trackers)
        self._rounds = _Tail(folder / "rounds.jsonl")
        self._records = _Tail(folder / "leakage.jsonl")
        self._of_round: dict[int, list[Record]] = defaultdict(list)
        self._folder = folder

    def start(self, scenario: Mapping[str, Any], committed: int | None) -> None:
        """Tell of a run that begins, or goes on after a committed round."""
        run = TrackedRun(self._folder, scenario, committed)
        self._tell(methodcaller("start", run))
        if self._trackers and committed is not None:
            self._log(since=committed)

    def committed(self) -> None:
        """Tell of what has been written since."""
        if self._trackers:
            self._log()

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Tell of the end of a run that reaches it, with the files that it leaves."""
        try:
            yield
        except NothingAccepted:  # the run is complete
            self._finish()
            raise
        self._finish()

    def _finish(self) -> None:
        if not self._trackers:
            return
        self.committed()  # what has landed since
        from fl_sim.report import build_report  # matplotlib takes a second

        try:
            build_report(self._folder)
        except (OSError, UserError) as error:
            logger.warning("trackers get no report: %s", error)
        files = [path for name in FILES if (path := self._folder / name).exists()]
        self._tell(methodcaller("finish", files))

    def _log(self, *, since: int = 0) -> None:
        """Read what was written, and tell of the rounds from `since` on that it is about."""
        numbers: dict[int, dict[str, float]] = defaultdict(dict)
        told = {line["round"]: line for line in self._rounds.read()}
        for server_round, line in told.items():
            numbers[server_round] |= _finite({k: v for k, v in line.items() if k != "round"})
        landed = self._records.read()  # of rounds before, too, where attacks run after the round
        for record in landed:
            self._of_round[record["round"]].append(record)
        for server_round in {record["round"] for record in landed}:
            for attack, values in of_attacks(self._of_round[server_round]).items():
                named = {f"attack.{attack}/{name}": value for name, value in values.items()}
                numbers[server_round] |= _finite(named)
        for server_round, found in sorted(numbers.items()):
            if server_round >= since:
                self._tell(methodcaller("log_round", server_round, found))

    def _tell(self, tell: Callable[[Tracker], Any]) -> None:
        for name, tracker in [*self._trackers]:
            try:
                tell(tracker)
            except Exception as error:  # a third party's, and never worth a run
                self._trackers.remove((name, tracker))
                logger.warning(
                    "tracker %r raised %s and is told no more of this run: %s",
                    name,
                    type(error).__name__,
                    error,
                )


class _Tail:
    """The lines of a growing file that weren't read yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the whole lines that came since."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
