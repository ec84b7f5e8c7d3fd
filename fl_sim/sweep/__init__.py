"""Sweeps: a scenario run again and again with some of its keys varied, side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fl_sim.sweep.folder import Ended, SweepFolder, fitting
from fl_sim.sweep.grid import Grid
from fl_sim.sweep.pool import Pool

__all__ = ["run_sweep"]


def run_sweep(
    grid: Grid,
    out: Path,
    *,
    jobs: int | None = None,
    resume: bool = False,
    on_progress: Callable[[int, int, Ended | None], None] | None = None,
) -> SweepFolder:
    """Do the runs of a sweep that aren't finished yet, side by side.

    A run that fails is written down with its sentence, and the sweep goes on; when the sweep is
    resumed, it is tried again.

    Args:
        grid: what to run.
        out: a folder that is new or empty, or holds this sweep when `resume` is set.
        jobs: runs at a time; None takes as many as the machine has processors and memory for.
        resume: go on with the runs that aren't finished; with more seeds, too.
        on_progress: called with (finished runs, all runs, how the last one ended); with None for
            the last before the first run begins.

    Returns:
        The sweep's folder.

    Raises:
        UserError: a run can't begin, found before the first one does; or the folder holds something
            else.
    """
    runs = fitting(out, grid, resume=resume).runs()
    with Pool(jobs, len(runs)) as pool:
        pool.check(runs)
        with SweepFolder.open(out, grid, resume=resume) as folder:
            owed, total = folder.owed(), len(folder.grid.runs())
            done = total - len(owed)
            if on_progress is not None:
                on_progress(done, total, None)
            for ended in pool.do(folder, owed):
                folder.note(ended)
                done += ended.is_finished
                if on_progress is not None:
                    on_progress(done, total, ended)
            return folder
