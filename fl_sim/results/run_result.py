"""A run as data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from fl_sim.leakage.headline import headline
from fl_sim.results.comparison import ComparedRun, Comparison
from fl_sim.results.display import columns_of, formatted, page
from fl_sim.results.frames import Exported, leakage_frame, rounds_frame, runs_frame
from fl_sim.results.recorded import RecordedRun

if TYPE_CHECKING:
    from fl_sim.scenario import Scenario


@dataclass(frozen=True)
class RunResult(Exported):
    """What a run left, as it was when it was loaded, finished or not.

    Args:
        path: the run folder.
        recorded: what it holds.
    """

    path: Path
    recorded: RecordedRun

    @cached_property
    def leakage(self) -> pd.DataFrame:
        """One row for each line of `leakage.jsonl`: what an attack learned of an example."""
        return leakage_frame(self.recorded.records)

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row for each committed round, with the server's accuracy; round 0 is untrained."""
        return rounds_frame(self.recorded.rounds)

    @cached_property
    def attacks(self) -> pd.DataFrame:
        """One row for each attack: shares that are right, medians, seconds."""
        return runs_frame(self._alone).drop(columns=["run", "cell"])

    @cached_property
    def scenario(self) -> Scenario:
        """The scenario as it ran.

        Raises:
            UserError: it is the audit of an app, which has none, or of another version of fl-sim.
        """
        from fl_sim.errors import UserError
        from fl_sim.scenario import Scenario

        if self.recorded.is_audit:
            raise UserError(f"{self.path} holds the audit of an app, which has no scenario")
        return Scenario.parse(self.recorded.scenario)

    @property
    def headline(self) -> str:
        """What the strongest attack learned, in two sentences at most."""
        recorded = self.recorded
        return headline(recorded.records, recorded.summaries, has_truth=recorded.has_truth)

    def report(self) -> Path:
        """Build the run's page, and return its path.

        Raises:
            UserError: as of `fl_sim.report.build_report`.
        """
        from fl_sim.report import build_report

        return build_report(self.path)

    def __repr__(self) -> str:
        """Return the path and the headline."""
        return f"<run {self.path}: {self.headline}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        columns = [(a, m) for a, m in columns_of(self._alone) if a is not None]
        measures = list(dict.fromkeys(measure for _, measure in columns))
        (run,) = self._alone.runs
        rows = [
            [title, *(formatted(run.attacks[attack].get(m.name), m) for m in measures)]
            for attack, title in run.titles.items()
        ]
        title = f"{self.recorded.scenario.get('name', 'audit')} · {self.path}"
        return page(title, self.headline, ["attack", *(m.title for m in measures)], rows)

    def _frames(self) -> dict[str, pd.DataFrame]:
        return {"leakage": self.leakage, "rounds": self.rounds, "attacks": self.attacks}

    @cached_property
    def _alone(self) -> Comparison:
        """The run's numbers, as a comparison with nothing else."""
        run = ComparedRun.of(
            str(self.path),
            self.path,
            self.recorded,
            cell=0,
            seed=self.recorded.scenario.get("seed"),
            values={},
            is_finished=self.recorded.is_finished,
        )
        return Comparison(str(self.path), (), [{}], [run])
