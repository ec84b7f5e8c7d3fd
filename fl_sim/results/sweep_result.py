"""A sweep as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from fl_sim.leakage.leaks import Record
from fl_sim.results.comparison import Comparison
from fl_sim.results.display import cell_rows, page
from fl_sim.results.frames import (
    Exported,
    cells_frame,
    key_columns,
    leakage_frame,
    rounds_frame,
    runs_frame,
    with_columns,
)
from fl_sim.results.recorded import RecordedRun

if TYPE_CHECKING:
    from fl_sim.scenario import Scenario


@dataclass(frozen=True)
class SweepResult(Exported):
    """What a sweep left, as it was when it was loaded, finished or not.

    Frames hold finished runs alone, but for `runs`, which says what became of each.

    Args:
        path: the sweep's folder.
        comparison: its numbers.
    """

    path: Path
    comparison: Comparison

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row for each run and attack: varied keys, seed, status, and all numbers."""
        return runs_frame(self.comparison)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row for each cell, attack and number: mean, median, 95 % interval over the seeds."""
        return cells_frame(self.comparison)

    @cached_property
    def leakage(self) -> pd.DataFrame:
        """All runs' `leakage.jsonl`, with the run, the varied keys and the seed in front."""
        return self._together(leakage_frame, lambda recorded: recorded.records)

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """All runs' `rounds.jsonl`, with the run, the varied keys and the seed in front."""
        return self._together(rounds_frame, lambda recorded: recorded.rounds)

    @cached_property
    def scenario(self) -> Scenario:
        """The scenario before anything is varied."""
        from fl_sim.scenario import Scenario

        return Scenario.parse(self.comparison.scenario or {})

    @property
    def headline(self) -> str:
        """How far the sweep is, in a sentence."""
        return self.comparison.progress

    def report(self) -> Path:
        """Build the comparison page and the tables, and return the page's path."""
        from fl_sim.report.comparison import build_comparison

        return build_comparison(self.comparison, self.path)

    def __repr__(self) -> str:
        """Return the path and how far the sweep is."""
        return f"<sweep {self.path}: {self.headline}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        title = f"{self.comparison.title} · {self.path}"
        return page(title, self.headline, *cell_rows(self.comparison))

    def _frames(self) -> dict[str, pd.DataFrame]:
        return {
            "leakage": self.leakage,
            "rounds": self.rounds,
            "runs": self.runs,
            "cells": self.cells,
        }

    def _together(
        self,
        frame: Callable[[Sequence[Record]], pd.DataFrame],
        lines: Callable[[RecordedRun], Sequence[Record]],
    ) -> pd.DataFrame:
        columns = key_columns(self.comparison.keys, self.comparison.cells)
        frames = [
            with_columns(
                frame(lines(RecordedRun.read(run.path))),
                {"run": run.name}
                | {name: values[run.cell] for name, values in columns.items()}
                | {"seed": run.seed},
            )
            for run in self.comparison.runs
            if run.is_finished
        ]
        empty = with_columns(frame([]), dict.fromkeys(["run", *columns, "seed"]))
        return pd.concat(frames, ignore_index=True) if frames else empty
