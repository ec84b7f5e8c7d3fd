"""What the command line shows: tables on standard output, logs and progress on standard error."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fl_sim.errors import UserError
from fl_sim.leakage.records import read_lines

logger = logging.getLogger(__name__)
_PROGRESS_CONSOLE = Console(stderr=True)


def output_console() -> Console:
    """Return a console on standard output."""
    # A pipe or a file has no width of its own; rich's 80 columns would break lines.
    return Console(width=None if sys.stdout.isatty() else 160)


def listing(heading: str, summaries: Mapping[str, str]) -> Table:
    """Return a table of names and what they are."""
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column(heading, no_wrap=True)
    table.add_column("what it is")
    for name, summary in summaries.items():
        table.add_row(name, summary)
    return table


def set_logging(verbose: bool, *, debug: bool) -> None:
    """Send logs to stderr, above the progress bars; debugging, with an attack's traceback.

    Flower sets its logger up when it is imported, so this comes after.
    """
    handler = RichHandler(console=_PROGRESS_CONSOLE, show_path=False)
    for name, quiet in (("fl_sim", logging.WARNING), ("flwr", logging.ERROR)):
        logging.getLogger(name).handlers = [handler]
        logging.getLogger(name).setLevel(logging.INFO if verbose else quiet)
    if debug:
        logging.getLogger("fl_sim").setLevel(logging.DEBUG)


def rows_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of text."""
    table = Table(box=SIMPLE, pad_edge=False)
    for heading in headings:
        table.add_column(Text(heading), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def progress_bars() -> Progress:
    """Return bars on standard error, shown on a terminal only."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=_PROGRESS_CONSOLE,
        transient=True,
        disable=not _PROGRESS_CONSOLE.is_terminal,
    )


@contextmanager
def progress(rounds: int, folder: Path) -> Iterator[Callable[[int, int, int], None]]:
    """Show rounds, clients and attacks after the round as bars, on a terminal only.

    Each finished round is logged. How many updates wait for their attacks is read off the run's
    folder, since the server may be another process.
    """
    from fl_sim.capture.pending import PendingRounds

    bars = progress_bars()
    all_rounds = bars.add_task("rounds", total=rounds)
    this_round = bars.add_task("clients", total=None)

    def on_progress(server_round: int, replies: int, clients: int) -> None:
        is_complete = replies == clients
        bars.update(all_rounds, completed=server_round if is_complete else server_round - 1)
        bars.update(this_round, completed=replies, total=clients)
        if is_complete:
            logger.info("round %d of %d", server_round, rounds)

    updates = bars.add_task("updates attacked after their round", total=None, visible=False)
    pending, ended = PendingRounds(folder / "pending"), threading.Event()

    def show(done: int, total: int) -> None:
        bars.update(updates, completed=done, total=total, visible=total > 0)

    watch = partial(watch_backlog, lambda: pending.left(rounds).updates, show, ended)
    with bars, _beside(watch, ended, is_wanted=not bars.disable):
        yield on_progress


def watch_backlog(
    left: Callable[[], int],
    show: Callable[[int, int], None],
    ended: threading.Event,
    *,
    seconds: float = 1.0,
) -> None:
    """Show how much of a backlog is done, now and then, until an event.

    Args:
        left: counts what waits; it may fail while files come and go.
        show: called with what is done, and with all that has been waiting so far.
        ended: ends it.
        seconds: between two looks.
    """
    total = last = 0
    while not ended.wait(seconds):
        with suppress(UserError, OSError):
            now = left()
            total += max(now - last, 0)
            last = now
            show(total - now, total)


@contextmanager
def _beside(
    function: Callable[[], None], ended: threading.Event, *, is_wanted: bool
) -> Iterator[None]:
    """Run a function in a thread until the block is left, or not at all."""
    if not is_wanted:
        yield
        return
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def updates_progress() -> Iterator[Callable[[int, int], None]]:
    """Show updates as a bar, on a terminal only."""
    bars = progress_bars()
    updates = bars.add_task("updates", total=None)

    def on_progress(done: int, total: int) -> None:
        bars.update(updates, completed=done, total=total)

    with bars:
        yield on_progress


def print_outcome(folder: Path) -> None:
    """Print what a run leaked, the page's first sentence, and its last accuracy."""
    from fl_sim.leakage.table import table
    from fl_sim.report import headline

    console = output_console()
    console.print(table(read_lines(folder / "leakage.jsonl")))
    console.print(headline(folder), highlight=False, markup=False, soft_wrap=True)
    rounds = read_lines(folder / "rounds.jsonl")
    if rounds and rounds[-1].get("accuracy") is not None:
        last = rounds[-1]
        console.print(f"accuracy after round {last['round']}: {last['accuracy']:.3f}")
