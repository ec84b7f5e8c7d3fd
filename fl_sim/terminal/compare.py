"""`fl-sim compare`: runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fl_sim.errors import UserError
from fl_sim.terminal.display import output_console, rows_table
from fl_sim.terminal.folders import new_folder


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where the page goes.", show_default="runs/comparison-<n>"
        ),
    ] = None,
) -> None:
    """Compare runs in their folders: print a table, and last the path of a comparison page.

    Runs whose scenarios differ in the seed alone are taken together. A sweep's folder stands for
    its finished runs.
    """
    from fl_sim.report.comparison import build_comparison, outcome
    from fl_sim.results.comparison import Comparison
    from fl_sim.results.display import cell_rows

    comparison = Comparison.of_runs(runs)
    if len(comparison.runs) < 2:
        raise UserError(f"compare takes two runs or more, found {len(comparison.runs)}")
    folder = new_folder("comparison", out)
    console = output_console()
    console.print(rows_table(*cell_rows(comparison)))
    console.print(outcome(comparison), highlight=False, markup=False, soft_wrap=True)
    typer.echo(build_comparison(comparison, folder))
