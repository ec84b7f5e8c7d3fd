"""A sweep's folder: what it was asked for, its runs, and which of them have ended how.

`sweep.json` describes it. `runs/cell-<cell>-seed-<seed>` are run folders as any other. A line in
`runs.jsonl` says how a run ended; a run without one is half done, or not begun.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fl_sim.atomic import write_atomically
from fl_sim.errors import UserError
from fl_sim.leakage.records import append_lines, read_lines, truncate_after
from fl_sim.origin import when_and_with
from fl_sim.run_folder import difference, locked
from fl_sim.scenario import Scenario
from fl_sim.sweep.grid import Axis, Grid, PlannedRun

DESCRIPTION = "sweep.json"


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Args:
        run: its name.
        sentence: why it failed, or what is to be said of it; None of one that is well.
        is_finished: whether it reached its last round.
        seconds: that it took this time, without those before it was resumed.
        peak_bytes: the most memory that its process has taken so far; None where it didn't say.
    """

    run: str
    sentence: str | None
    is_finished: bool
    seconds: float
    peak_bytes: int | None = None


@dataclass(frozen=True)
class SweepFolder:
    """An existing sweep folder.

    Args:
        path: the folder.
        grid: what it was asked for.
    """

    path: Path
    grid: Grid

    @classmethod
    def read(cls, path: Path) -> SweepFolder:
        """Read what a folder was asked for.

        Raises:
            UserError: it is no sweep's folder, or of another version of fl-sim.
        """
        description = _described(path)
        try:
            grid = Grid(
                Scenario.parse(description["scenario"]),
                tuple(Axis(axis["key"], tuple(axis["values"])) for axis in description["over"]),
                bool(description["zip"]),
                tuple(int(seed) for seed in description["seeds"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path / DESCRIPTION} isn't a sweep's description: {error}") from error
        return cls(path, grid)

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, grid: Grid, *, resume: bool) -> Iterator[SweepFolder]:
        """Start a sweep in a new or empty folder, or go on with the same one in its own.

        The same sweep may have more seeds than before.

        Raises:
            UserError: the folder holds something else, or another process works in it.
        """
        grid = fitting(path, grid, resume=resume)
        started = when_and_with()
        if is_sweep(path):
            started = {key: _described(path)[key] for key in started}
        path.mkdir(parents=True, exist_ok=True)
        with locked(path):
            description = {"kind": "sweep", **_plain(grid), **started}
            text = json.dumps(description, indent=2) + "\n"
            write_atomically(path / DESCRIPTION, text.encode())
            (path / "runs").mkdir(exist_ok=True)
            truncate_after(path / "runs.jsonl", lambda line: True)
            yield cls(path, grid)

    def run_folder(self, run: PlannedRun) -> Path:
        """Return where a run is, or will be."""
        return self.path / "runs" / run.name

    def ended(self) -> dict[str, Ended]:
        """Return how runs ended, by their names; where a run was tried again, the last time."""
        return {line["run"]: Ended(**line) for line in read_lines(self.path / "runs.jsonl")}

    def note(self, ended: Ended) -> None:
        """Write down how a run ended."""
        append_lines(self.path / "runs.jsonl", [json.dumps(asdict(ended))])

    def owed(self) -> list[PlannedRun]:
        """Return the runs that aren't finished: not begun, half done or failed."""
        ended = self.ended()
        return [
            run
            for run in self.grid.runs()
            if not (run.name in ended and ended[run.name].is_finished)
            or not self.run_folder(run).is_dir()
        ]


def is_sweep(path: Path) -> bool:
    """Say whether a folder is a sweep's."""
    return (path / DESCRIPTION).is_file()


def _plain(grid: Grid) -> dict[str, Any]:
    return {
        "scenario": grid.base.model_dump(mode="json"),
        "over": [{"key": axis.key, "values": list(axis.values)} for axis in grid.axes],
        "zip": grid.zipped,
        "seeds": list(grid.seeds),
    }


def _described(path: Path) -> dict[str, Any]:
    file = path / DESCRIPTION
    if not file.is_file():
        raise UserError(f"{path} is not a sweep folder: it has no {DESCRIPTION}")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} isn't valid JSON: {error}") from error
    if not isinstance(description, dict):
        raise UserError(f"{file} isn't a sweep's description: it must hold an object")
    return description


def fitting(path: Path, grid: Grid, *, resume: bool) -> Grid:
    """Return the grid that a folder is for: with all of its seeds, where it holds this sweep.

    Raises:
        UserError: it holds something else, or this sweep while `resume` isn't set.
    """
    if not is_sweep(path):
        held = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
        held = [name for name in held if name != ".lock"]
        if held:
            raise UserError(f"{path} must be empty or hold a sweep; it holds {held[0]!r}")
        return grid
    there = SweepFolder.read(path).grid
    theirs, ours = ({**_plain(one), "seeds": one.seeds[:1]} for one in (there, grid))
    different = difference(*(json.loads(json.dumps(one)) for one in (theirs, ours)))
    if different:
        raise UserError(f"{path} holds another sweep: {different}; choose another --out")
    if not resume:
        raise UserError(f"{path} holds this sweep already; go on with --resume")
    return grid if len(grid.seeds) > len(there.seeds) else there
