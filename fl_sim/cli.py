"""The command line, `fl-sim`.

Starting it imports neither PyTorch nor Flower: a command imports what it needs when it runs.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from enum import StrEnum
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import typer

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS
from defenses import DEFENSES
from fl_sim import DATASETS, ENGINES, MODELS, TRACKERS, __version__, run_and_report
from fl_sim.errors import EngineError, NothingAccepted, UserError
from fl_sim.scenario.source import scenario_file, shipped_scenario, shipped_scenarios
from fl_sim.terminal.attack import attack
from fl_sim.terminal.audit_dp import audit_dp
from fl_sim.terminal.capture import capture
from fl_sim.terminal.command import Command
from fl_sim.terminal.compare import compare
from fl_sim.terminal.display import listing, output_console, print_outcome, progress, set_logging
from fl_sim.terminal.folders import RUNS, folder_to_resume, new_folder
from fl_sim.terminal.sweep import show_sweep, sweep
from fl_sim.wording import count

app = typer.Typer(
    name="fl-sim", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


class Kind(StrEnum):
    """What `fl-sim list` lists."""

    ATTACKS = "attacks"
    DEFENSES = "defenses"
    MODELS = "models"
    DATASETS = "datasets"
    TRACKERS = "trackers"
    SCENARIOS = "scenarios"


class Suite(StrEnum):
    """What `fl-sim bench` benchmarks."""

    LABELS = "labels"
    IMAGES = "images"
    DEFENSES = "defenses"
    ROUNDS = "rounds"
    SIMULATOR = "simulator"


_REGISTRIES = {
    Kind.ATTACKS: (LABEL_ATTACKS, IMAGE_ATTACKS),
    Kind.DEFENSES: (DEFENSES,),
    Kind.MODELS: (MODELS,),
    Kind.DATASETS: (DATASETS,),
    Kind.TRACKERS: (TRACKERS,),
}


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fl-sim {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Simulate federated learning and audit what each client's update leaks to the server."""
    # Flower reads these when it is imported; what the user set stays.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")


@app.command(cls=Command)
def run(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="NAME|FILE")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY.PATH=VALUE",
            help="Change a key, as in client.lr=0.05 or defense.0.smoothing=0.2; repeatable.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Replace the scenario's seed.")] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(ENGINES),
            help=f"Replace the engine: {', or '.join(map(ENGINES.summary, ENGINES))}.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run folder.", show_default="runs/<name>-<n>"),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run in DIR, or the latest one; with more rounds, too."
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
) -> None:
    """Run a scenario; print what leaked, and last the path of the report.

    NAME is one of `fl-sim list scenarios`; FILE is a TOML file, with .toml or a separator in it.
    """
    from fl_sim.scenario import Scenario

    changes = [*(overrides or ()), *([f"engine={engine}"] if engine else ())]
    with scenario_file(source) as path:
        scenario = Scenario.load(path, changes, seed=seed)
    # PyTorch and Flower load here, after the mistakes that can be found without them.
    from fl_sim.federation import Federation

    Federation.of(scenario)  # now, while a download can show its own progress bar
    folder = folder_to_resume(scenario.name, out) if resume else new_folder(scenario.name, out)
    ENGINES.get(scenario.engine)  # and with it Flower, which sets its logger up on import
    set_logging(verbose, debug=ctx.find_root().params["debug"])
    if not scenario.attack:
        typer.echo("fl-sim: the scenario has no [[attack]]: it trains, and nothing else", err=True)
    try:
        with progress(scenario.rounds, folder) as on_progress:
            path = run_and_report(scenario, folder, resume=resume, on_progress=on_progress)
    except NothingAccepted as error:  # the run is complete: its report says the rest
        if error.report is not None:
            _print_run(error.report)
        raise
    except UserError:
        with suppress(OSError):  # it isn't empty
            folder.rmdir()
        raise
    except (KeyboardInterrupt, OSError, EngineError) as error:
        if note := _way_on(error, folder):
            error.add_note(note)
        raise
    _print_run(path)


app.command(cls=Command)(attack)
app.command(cls=Command)(capture)


@app.command(cls=Command)
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
) -> None:
    """Build the report of the run or the sweep in the folder DIR again, and print its path."""
    if not folder.is_dir():
        raise UserError(f"run folder {folder} doesn't exist or isn't a folder")
    if (folder / "sweep.json").exists():
        show_sweep(folder)
        return
    from fl_sim.report import build_report, notice

    path = build_report(folder)
    if missing := notice(folder):
        typer.echo(f"fl-sim: {missing}", err=True)
    typer.echo(path)


app.command(cls=Command)(sweep)
app.command(cls=Command)(compare)
app.command("audit-dp", cls=Command)(audit_dp)


@app.command(cls=Command)
def bench(
    suite: Annotated[Suite, typer.Argument()],
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A small part: up to two minutes a benchmark, two to six a suite; of the grid of "
            "defenses none, smoothing 0.1, pruning 0.95 and dp-noise 0.01, ten rounds, one seed; "
            "of rounds, the first two without a defense and with smoothing, one seed.",
        ),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="One benchmark of the suite; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where tables and figures go.",
            show_default="docs/results, with --quick runs/bench",
        ),
    ] = None,
) -> None:
    """Benchmark attacks or the simulator, and write tables (Markdown, CSV) and figures.

    Published results stand beside those of attacks.
    """
    from fl_sim.bench.run import run_suite
    from fl_sim.bench.table import RESULTS

    folder = out or (RUNS / "bench" if quick else RESULTS)
    chosen = tuple(only or ())
    for name, table in run_suite(suite.value, only=chosen, quick=quick, seed=seed, folder=folder):
        typer.echo(table)
        typer.echo(folder / f"{name}.md")


@app.command("list", cls=Command)
def list_entries(kind: Annotated[Kind, typer.Argument()]) -> None:
    """List names that a scenario can use, or the scenarios that come with fl-sim."""
    console = output_console()
    if kind is Kind.SCENARIOS:
        purposes = {name: _first_comment(file) for name, file in shipped_scenarios().items()}
        console.print(listing("scenario", purposes))
        return
    for registry in _REGISTRIES[kind]:
        try:
            summaries = {name: registry.summary(name) for name in registry}
        except ValueError as error:  # two packages claim one name
            raise UserError(str(error)) from error
        console.print(listing(registry.kind, summaries))


@app.command(cls=Command)
def show(name: Annotated[str, typer.Argument()]) -> None:
    """Print a scenario that comes with fl-sim, to start your own from: `fl-sim show NAME > FILE`.

    NAME is one of `fl-sim list scenarios`.
    """
    typer.echo(shipped_scenario(name).read_text(encoding="utf-8"), nl=False)


def main() -> None:
    """Run the command line."""
    sys.path.append(os.getcwd())  # for module:attr of the user's own; last, so it hides nothing
    app()


def _first_comment(file: Traversable) -> str:
    return file.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("#").strip()


def _print_run(path: Path) -> None:
    """Print what a run leaked, and last the path of its report."""
    print_outcome(path.parent)
    typer.echo(path)


def _way_on(error: BaseException, folder: Path) -> str | None:
    """Say how a broken run goes on, where it can."""
    again = f"the same command with --resume --out {folder} goes on from there"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the run folder is whole; free some space, then {again}"
    if not isinstance(error, KeyboardInterrupt | EngineError):
        return None
    from fl_sim.results.recorded import RecordedRun  # PyTorch loads with it

    with suppress(UserError):  # nothing is there yet, or is damaged, which the next attempt says
        if updates := RecordedRun.read(folder).left.updates:
            again += f", and attacks the {count(updates, 'update')} that wait for it"
    return again


if __name__ == "__main__":
    main()
