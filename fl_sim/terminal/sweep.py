"""`fl-sim sweep`: a scenario again and again, with some of its keys varied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_sim.errors import UserError
from fl_sim.scenario.source import scenario_file
from fl_sim.terminal.display import output_console, progress_bars, rows_table
from fl_sim.terminal.folders import folder_to_resume, new_folder

if TYPE_CHECKING:
    from fl_sim.sweep.folder import Ended

AUTO = "auto"


def sweep(
    source: Annotated[str, typer.Argument(metavar="NAME|FILE")],
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY.PATH=A,B,C",
            help="A key of the scenario and its values, each as --set takes it; repeatable.",
        ),
    ] = None,
    zipped: Annotated[
        bool,
        typer.Option(
            "--zip", help="Take first values together, then second ones; not each with each."
        ),
    ] = False,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each combination, from the scenario's seed on.")
    ] = 3,
    jobs: Annotated[
        str,
        typer.Option(
            metavar="N|auto", help="Runs at a time; auto: as processors and memory allow."
        ),
    ] = AUTO,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY.PATH=VALUE", help="Change a key of all runs; repeatable."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The sweep's folder.", show_default="runs/<name>-sweep-<n>"
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the sweep in DIR, or the latest; with more seeds, too."
        ),
    ] = False,
) -> None:
    """Run a scenario with keys varied, side by side; print what leaked, and last the report's path.

    NAME is one of `fl-sim list scenarios`; FILE is a TOML file, with .toml or a separator in it.
    """
    from fl_sim.scenario import Scenario
    from fl_sim.sweep import run_sweep
    from fl_sim.sweep.grid import Axis, Grid

    at_a_time = _at_a_time(jobs)
    with scenario_file(source) as path:
        base = Scenario.load(path, overrides or ())
    grid = Grid.of(base, [Axis.parse(one) for one in over or ()], zipped=zipped, seeds=seeds)
    grid.runs()  # what is wrong with a cell is found here
    name = f"{base.name}-sweep"
    folder = folder_to_resume(name, out) if resume else new_folder(name, out)
    try:
        with _progress() as on_progress:
            run_sweep(grid, folder, jobs=at_a_time, resume=resume, on_progress=on_progress)
    except UserError:
        with suppress(OSError):  # it isn't empty
            folder.rmdir()
        raise
    except (KeyboardInterrupt, OSError) as error:
        error.add_note(f"the same command with --resume --out {folder} goes on from there")
        raise
    show_sweep(folder)


def show_sweep(folder: Path) -> None:
    """Build a sweep's page, print its table and last the page's path; exit with 1 if a run failed.

    Raises:
        UserError: a file in the folder isn't what it should be.
    """
    from fl_sim.report.comparison import build_comparison, outcome
    from fl_sim.results.comparison import Comparison
    from fl_sim.results.display import cell_rows

    comparison = Comparison.of_sweep(folder)
    console = output_console()
    console.print(rows_table(*cell_rows(comparison)))
    console.print(outcome(comparison), highlight=False, markup=False, soft_wrap=True)
    typer.echo(comparison.progress)
    typer.echo(build_comparison(comparison, folder))
    if any(run.has_failed for run in comparison.runs):
        raise typer.Exit(1)


def _at_a_time(jobs: str) -> int | None:
    if jobs == AUTO:
        return None
    if not (jobs.isdecimal() and int(jobs)):
        raise UserError(f"--jobs must be {AUTO} or a whole number of at least 1, found {jobs!r}")
    return int(jobs)


@contextmanager
def _progress() -> Iterator[Callable[[int, int, Ended | None], None]]:
    """Show finished runs as a bar, on a terminal only; a run that fails is told at once."""
    with progress_bars() as bars:
        runs = bars.add_task("runs", total=None)

        def on_progress(done: int, total: int, ended: Ended | None) -> None:
            bars.update(runs, completed=done, total=total)
            if ended is not None and ended.sentence is not None:
                typer.echo(f"fl-sim: {ended.run}: {ended.sentence}", err=True)

        yield on_progress
