"""The command line, `fl-sim`.

Starting it imports neither PyTorch nor Flower: a command imports what it needs when it runs.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from typer.core import TyperCommand, TyperOption

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS
from defenses import DEFENSES
from fl_sim import DATASETS, MODELS, __version__
from fl_sim.errors import EngineError, NothingAccepted, UserError
from fl_sim.records import read_lines
from fl_sim.scenario_source import scenario_file, shipped_scenarios

RUNS = Path("runs")
USER_MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130

logger = logging.getLogger(__name__)
app = typer.Typer(
    name="fl-sim", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
_progress_console = Console(stderr=True)


class Kind(StrEnum):
    """What `fl-sim list` lists."""

    ATTACKS = "attacks"
    DEFENSES = "defenses"
    MODELS = "models"
    DATASETS = "datasets"
    SCENARIOS = "scenarios"


class Suite(StrEnum):
    """What `fl-sim bench` benchmarks."""

    LABELS = "labels"
    IMAGES = "images"


_REGISTRIES = {
    Kind.ATTACKS: (LABEL_ATTACKS, IMAGE_ATTACKS),
    Kind.DEFENSES: (DEFENSES,),
    Kind.MODELS: (MODELS,),
    Kind.DATASETS: (DATASETS,),
}


class _Command(TyperCommand):
    """A command that tells an error in one sentence; `--debug` brings the traceback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        debug = TyperOption(
            param_decls=["--debug"], is_flag=True, expose_value=False, help="Show tracebacks."
        )
        debug.callback = _note_debug
        self.params.append(debug)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            # The reader of our output went away: typer ends quietly.
            is_broken_pipe = isinstance(error, OSError) and error.errno == errno.EPIPE
            if ctx.find_root().params["debug"] or is_broken_pipe:
                raise
            sentence, status = _explain(error)
            notes = getattr(error, "__notes__", [])
            typer.echo(f"fl-sim: {'; '.join([sentence, *notes])}", err=True)
            raise typer.Exit(status) from error


def _note_debug(ctx: Any, option: Any, wanted: bool) -> None:
    """Take `--debug` behind a command's name as before it."""
    if wanted:
        ctx.find_root().params["debug"] = True


def _explain(error: BaseException) -> tuple[str, int]:
    """Return the sentence and the exit status of an error."""
    if isinstance(error, UserError):
        return str(error), USER_MISTAKE
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, EngineError | NothingAccepted):
        return str(error), FAILURE
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}", FAILURE
    cause = f"{type(error).__name__}: {error}".replace("\n", " ")
    return f"unexpected {cause} (fl-sim --debug shows where)", FAILURE


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


@app.command(cls=_Command)
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
            metavar="local|ray",
            help="Replace the engine: in this process, or Flower's simulation on Ray.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run folder.", show_default="runs/<name>-<n>"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in DIR, or the latest one.")
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
    from fl_sim.report import build_report
    from fl_sim.simulation import run as simulate

    Federation.of(scenario)  # now, while a download can show its own progress bar
    folder = _folder_to_resume(scenario.name, out) if resume else _new_folder(scenario.name, out)
    _set_logging(verbose, debug=ctx.find_root().params["debug"])
    if not scenario.attack:
        typer.echo("fl-sim: the scenario has no [[attack]]: it trains, and nothing else", err=True)
    lost: NothingAccepted | None = None
    try:
        with _progress(scenario.rounds) as on_progress:
            try:
                simulate(scenario, folder, resume=resume, on_progress=on_progress)
            except NothingAccepted as error:  # the run is complete: its report says the rest
                lost = error
        report = build_report(folder)
    except UserError:
        with suppress(OSError):  # it isn't empty
            folder.rmdir()
        raise
    except (KeyboardInterrupt, OSError, EngineError) as error:
        if note := _way_on(error, folder):
            error.add_note(note)
        raise
    _print_outcome(folder)
    typer.echo(report)
    if lost is not None:
        raise lost


@app.command(cls=_Command)
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
) -> None:
    """Build the report of the run in the folder DIR again, and print its path."""
    from fl_sim.report import build_report

    if not folder.is_dir():
        raise UserError(f"run folder {folder} doesn't exist or isn't a folder")
    typer.echo(build_report(folder))


@app.command(cls=_Command)
def bench(
    suite: Annotated[Suite, typer.Argument()],
    quick: Annotated[
        bool, typer.Option("--quick", help="A small part, in a minute or so.")
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
            show_default="benchmarks/results, with --quick runs/bench",
        ),
    ] = None,
) -> None:
    """Benchmark attacks, and write tables (Markdown, CSV) and figures beside published results."""
    from fl_sim.bench.run import run_suite
    from fl_sim.bench.table import RESULTS

    folder = out or (RUNS / "bench" if quick else RESULTS)
    chosen = tuple(only or ())
    for name, table in run_suite(suite.value, only=chosen, quick=quick, seed=seed, folder=folder):
        typer.echo(table)
        typer.echo(folder / f"{name}.md")


@app.command("list", cls=_Command)
def list_entries(kind: Annotated[Kind, typer.Argument()]) -> None:
    """List names that a scenario can use, or the scenarios that come with fl-sim."""
    console = _output_console()
    if kind is Kind.SCENARIOS:
        purposes = {name: _first_comment(file) for name, file in shipped_scenarios().items()}
        console.print(_listing("scenario", purposes))
        return
    for registry in _REGISTRIES[kind]:
        try:
            summaries = {name: registry.summary(name) for name in registry}
        except ValueError as error:  # two packages claim one name
            raise UserError(str(error)) from error
        console.print(_listing(registry.kind, summaries))


def main() -> None:
    """Run the command line."""
    sys.path.append(os.getcwd())  # for module:attr of the user's own; last, so it hides nothing
    app()


def _output_console() -> Console:
    # A pipe or a file has no width of its own; rich's 80 columns would break lines.
    return Console(width=None if sys.stdout.isatty() else 160)


def _listing(heading: str, summaries: dict[str, str]) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column(heading, no_wrap=True)
    table.add_column("what it is")
    for name, summary in summaries.items():
        table.add_row(name, summary)
    return table


def _first_comment(file: Traversable) -> str:
    return file.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("#").strip()


def _numbered_folders(name: str) -> dict[int, Path]:
    pattern = re.compile(re.escape(_folder_name(name)) + r"-(\d+)")
    folders = RUNS.iterdir() if RUNS.is_dir() else ()
    return {int(match[1]): p for p in folders if (match := pattern.fullmatch(p.name))}


def _folder_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def _new_folder(name: str, out: Path | None) -> Path:
    """Create the run folder: `out`, or `runs/<name>-<n>` with the next free n."""
    if out is not None:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"--out {out} exists; name a new or an empty folder, or add --resume")
        out.mkdir(parents=True, exist_ok=True)
        return out
    while True:
        folder = RUNS / f"{_folder_name(name)}-{max(_numbered_folders(name), default=0) + 1}"
        with suppress(FileExistsError):  # another run took this number just now
            folder.mkdir(parents=True)
            return folder


def _folder_to_resume(name: str, out: Path | None) -> Path:
    """Return `out`, or the `runs/<name>-<n>` with the largest n."""
    folders = _numbered_folders(name)
    if out is None and not folders:
        raise UserError(f"nothing to resume: there is no {RUNS / _folder_name(name)}-<n>")
    folder = out or folders[max(folders)]
    if not folder.is_dir():
        raise UserError(f"nothing to resume: {folder} doesn't exist or isn't a folder")
    return folder


def _way_on(error: BaseException, folder: Path) -> str | None:
    """Say how a broken run goes on, where it can."""
    again = f"the same command with --resume --out {folder} goes on from there"
    if isinstance(error, KeyboardInterrupt | EngineError):
        return again
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the run folder is whole; free some space, then {again}"
    return None


def _set_logging(verbose: bool, *, debug: bool) -> None:
    """Send logs to stderr, above the progress bars; debugging, with an attack's traceback.

    Flower sets its logger up when it is imported, so this comes after.
    """
    handler = RichHandler(console=_progress_console, show_path=False)
    for name, quiet in (("fl_sim", logging.WARNING), ("flwr", logging.ERROR)):
        logging.getLogger(name).handlers = [handler]
        logging.getLogger(name).setLevel(logging.INFO if verbose else quiet)
    if debug:
        logging.getLogger("fl_sim").setLevel(logging.DEBUG)


@contextmanager
def _progress(rounds: int) -> Iterator[Callable[[int, int, int], None]]:
    """Show rounds and clients as bars, on a terminal only; each finished round is logged."""
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=_progress_console,
        transient=True,
        disable=not _progress_console.is_terminal,
    )
    all_rounds = bars.add_task("rounds", total=rounds)
    this_round = bars.add_task("clients", total=None)

    def on_progress(server_round: int, replies: int, clients: int) -> None:
        is_complete = replies == clients
        bars.update(all_rounds, completed=server_round if is_complete else server_round - 1)
        bars.update(this_round, completed=replies, total=clients)
        if is_complete:
            logger.info("round %d of %d", server_round, rounds)

    with bars:
        yield on_progress


def _print_outcome(folder: Path) -> None:
    from fl_sim.summary import table

    console = _output_console()
    console.print(table(read_lines(folder / "leakage.jsonl")))
    rounds = read_lines(folder / "rounds.jsonl")
    if rounds and rounds[-1].get("accuracy") is not None:
        last = rounds[-1]
        console.print(f"accuracy after round {last['round']}: {last['accuracy']:.3f}")


if __name__ == "__main__":
    main()
