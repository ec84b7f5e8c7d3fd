"""Runs beside each other: what varies among them, and their numbers, cell by cell.

A cell holds runs whose scenarios differ in the seed alone. A sweep says what it varies; of other
runs it is found out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fl_sim.errors import UserError
from fl_sim.leakage.leaks import Record
from fl_sim.results.flags import Evidence, Flag, flags
from fl_sim.results.measures import (
    OF_ATTACKS,
    OF_RUNS,
    Measure,
    Values,
    by_round,
    of_attacks,
    of_run,
)
from fl_sim.results.recorded import RecordedRun
from fl_sim.results.spread import Spread, spread
from fl_sim.results.varied import varied
from fl_sim.sweep.folder import SweepFolder, is_sweep
from fl_sim.wording import count

_MEASURES = {measure.name: measure for measure in (*OF_ATTACKS, *OF_RUNS)}


@dataclass(frozen=True)
class ComparedRun:
    """A run's numbers.

    Args:
        name: what it is called among the others.
        path: the run folder, which may not be there yet.
        cell: number of its cell.
        seed: its own; None of an audit that had none.
        values: key -> value, of what varies.
        sentence: why it failed, or what else is to be said of it.
        is_finished: whether it reached its last round.
        titles: attack -> what it is, as in `soft-label + analytic (unaware)`.
        attacks: attack -> numbers.
        numbers: of the run.
        rounds: (attack, round) -> numbers.
        training: lines of `rounds.jsonl`.
        defense: the names of its defenses, "" for none.
        evidence: of what has to be said beside the numbers.
    """

    name: str
    path: Path
    cell: int
    seed: int | None
    values: Mapping[str, Any]
    sentence: str | None = None
    is_finished: bool = False
    titles: Mapping[int, str] = field(default_factory=dict)
    attacks: Mapping[int, Values] = field(default_factory=dict)
    numbers: Values = field(default_factory=dict)
    rounds: Mapping[tuple[int, int], Values] = field(default_factory=dict)
    training: Sequence[Record] = ()
    defense: str = ""
    evidence: Evidence = field(default_factory=Evidence)

    @property
    def has_failed(self) -> bool:
        """Whether it ended before its last round, for a reason that was noted."""
        return not self.is_finished and self.sentence is not None

    @classmethod
    def of(cls, name: str, path: Path, recorded: RecordedRun, **more: Any) -> ComparedRun:
        """Sum up what was recorded; the records themselves are let go."""
        return cls(
            name,
            path,
            titles={s.attack: f"{s.title} ({s.attacker})" for s in recorded.summaries},
            attacks=of_attacks(recorded.records),
            numbers=of_run(recorded.rounds),
            rounds=by_round(recorded.records),
            training=recorded.rounds,
            defense=" + ".join(s["name"] for s in recorded.scenario.get("defense") or ()),
            evidence=Evidence.of(recorded.scenario, recorded.records, recorded.rounds),
            **more,
        )


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other.

    Args:
        title: what the page is called.
        keys: what varies, in order; a single empty cell where nothing does.
        cells: key -> value, of each cell.
        runs: all of them, those that aren't finished included.
        scenario: that of a sweep, before anything is varied; None otherwise.
    """

    title: str
    keys: tuple[str, ...]
    cells: Sequence[Mapping[str, Any]]
    runs: Sequence[ComparedRun]
    scenario: Mapping[str, Any] | None = None

    @classmethod
    def of_sweep(cls, path: Path) -> Comparison:
        """Read a sweep's folder, finished or not.

        Raises:
            UserError: it isn't one, or a file of a finished run isn't what it should be.
        """
        folder = SweepFolder.read(path)
        ended = folder.ended()
        runs = []
        for run in folder.grid.runs():
            place = folder.run_folder(run)
            end = ended.get(run.name)
            about: dict[str, Any] = {
                "cell": run.cell,
                "seed": run.scenario.seed,
                "values": run.values,
            }
            about |= {"sentence": end.sentence} if end else {}
            if end and end.is_finished and place.is_dir():
                recorded = RecordedRun.read(place)
                runs.append(ComparedRun.of(run.name, place, recorded, is_finished=True, **about))
            else:
                runs.append(ComparedRun(run.name, place, **about))
        keys = tuple(axis.key for axis in folder.grid.axes)
        base = folder.grid.base
        return cls(base.name, keys, folder.grid.cells(), runs, base.model_dump(mode="json"))

    @classmethod
    def of_runs(cls, paths: Sequence[Path]) -> Comparison:
        """Read run folders; that of a sweep stands for its finished runs.

        Raises:
            UserError: a folder is none of both, or comes twice.
        """
        folders = [place for path in paths for place in _runs_in(path)]
        for index, place in enumerate(folders):
            if place.resolve() in [other.resolve() for other in folders[:index]]:
                raise UserError(f"{place} comes twice: name each run once")
        read = [RecordedRun.read(place) for place in folders]
        keys, values = varied([one.scenario for one in read])
        cells: list[Mapping[str, Any]] = []
        runs = []
        for place, recorded, own in zip(folders, read, values, strict=True):
            if own not in cells:
                cells.append(own)
            runs.append(
                ComparedRun.of(
                    str(place),
                    place,
                    recorded,
                    cell=cells.index(own),
                    seed=recorded.scenario.get("seed"),
                    values=own,
                    is_finished=recorded.is_finished,
                )
            )
        return cls(f"{len(runs)} runs", keys, cells, runs)

    @cached_property
    def attacks(self) -> dict[int, str]:
        """Each attack's number, and its title, where all runs that have it agree."""
        found: dict[int, set[str]] = {}
        for run in self.runs:
            for attack, title in run.titles.items():
                found.setdefault(attack, set()).add(title)
        return {
            attack: titles.pop() if len(titles) == 1 else f"attack {attack}"
            for attack, titles in sorted(found.items())
        }

    @property
    def progress(self) -> str:
        """How many runs are finished, failed and left, in a sentence."""
        total = len(self.runs)
        finished = sum(run.is_finished for run in self.runs)
        failed = sum(run.has_failed for run in self.runs)
        cells = count(len(self.cells), "cell")
        said = f"{finished} of {count(total, 'run')} finished, in {cells}"
        if failed:
            said += f"; {failed} failed"
        left = total - finished - failed
        return f"{said}; {left} to do." if left else f"{said}."

    def of_cell(self, cell: int) -> list[ComparedRun]:
        """Return the runs of a cell that have numbers."""
        return [run for run in self.runs if run.cell == cell and run.numbers]

    def number(self, cell: int, attack: int | None, measure: str) -> Spread | None:
        """Return a number of an attack, or with None of the runs, over the runs of a cell."""
        runs = self.of_cell(cell)
        if attack is None:
            return _spread([run.numbers for run in runs], measure)
        return _spread([run.attacks.get(attack, {}) for run in runs], measure)

    def curve(self, cell: int, attack: int | None, measure: str) -> dict[int, Spread]:
        """Return the same for each round."""
        runs = self.of_cell(cell)
        if attack is None:
            told = [{line["round"]: dict(line) for line in run.training} for run in runs]
        else:
            told = [
                {at: values for (other, at), values in run.rounds.items() if other == attack}
                for run in runs
            ]
        rounds = sorted({at for one in told for at in one})
        found = {at: _spread([one.get(at, {}) for one in told], measure) for at in rounds}
        return {at: one for at, one in found.items() if one is not None}

    def flags(self, cell: int) -> list[Flag]:
        """Return what has to be said beside a cell's numbers."""
        return flags([run.evidence for run in self.of_cell(cell)])

    def has(self, attack: int | None, measure: Measure) -> bool:
        """Say whether any run has a number."""
        numbers = [
            run.numbers if attack is None else run.attacks.get(attack, {}) for run in self.runs
        ]
        return any(values.get(measure.name) is not None for values in numbers)


def _spread(numbers: Sequence[Values], name: str) -> Spread | None:
    measure = _MEASURES[name]
    examples = [values.get(measure.of) or 0 for values in numbers] if measure.of else None
    values = [one.get(name) for one in numbers]
    return spread(values, is_share=measure.unit == "share", examples=examples)


def _runs_in(path: Path) -> list[Path]:
    if not path.is_dir():
        raise UserError(f"run folder {path} doesn't exist or isn't a folder")
    if not is_sweep(path):
        return [path]
    folder = SweepFolder.read(path)
    ended = folder.ended()
    finished = [
        run for run in folder.grid.runs() if run.name in ended and ended[run.name].is_finished
    ]
    if not finished:
        raise UserError(f"{path} holds no finished run")
    return [folder.run_folder(run) for run in finished]
