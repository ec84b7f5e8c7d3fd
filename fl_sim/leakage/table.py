"""The closing table of a run."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fl_sim.leakage.summary import AttackSummary, Record, summarize

_SCORED = (
    "examples",
    "labels\nclaimed\n(false)",
    "labels\nright",
    "class\nright\n(guess)",
    "images\nclaimed\n(false)",
    "PSNR dB\n(mean\nimage)",
    "seconds",
)
_UNSCORED = ("examples", "labels claimed", "images claimed", "seconds")


def table(records: Iterable[Record], *, has_truth: bool = True) -> Table:
    """Return the closing table of a run, one row for each attack; it fits 100 columns.

    Args:
        records: the run's lines.
        has_truth: whether they are scored; without, the table says what attacks claim.
    """
    records = list(records)
    result = Table(box=SIMPLE, pad_edge=False, caption_justify="left")
    result.add_column("attack", overflow="fold", max_width=24)
    result.add_column("attacker")
    summaries = summarize(records)
    for heading in _SCORED if has_truth else _UNSCORED:
        result.add_column(heading, justify="right")
    for summary in summaries:
        row = _scored(summary) if has_truth else _unscored(summary)
        result.add_row(Text(summary.title), Text(summary.attacker or ""), *row)
    unattacked = sum(record.get("attack") is None for record in records)
    notes = [
        *(_mass_note(summary) for summary in summaries),
        "" if result.row_count else "no update was attacked",
        f"{unattacked} {'reply' if unattacked == 1 else 'replies'} couldn't be attacked"
        if unattacked
        else "",
    ]
    result.caption = "; ".join(note for note in notes if note) or None
    return result


def _scored(summary: AttackSummary) -> list[str]:
    has_images = summary.image_attack is not None
    images = f"{summary.images_recovered}\n({summary.false_images})"
    psnr = f"{_db(summary.psnr_db)}\n({_db(summary.baseline_psnr_db)})"
    return [
        str(summary.examples),
        f"{summary.recovered}\n({summary.false_accepts})",
        _percent(summary.label_success),
        f"{_percent(summary.top1)}\n({_percent(summary.baseline_top1)})",
        images if has_images else "",
        psnr if has_images else "",
        f"{summary.total_seconds:.3g}",
    ]


def _unscored(summary: AttackSummary) -> list[str]:
    images = "" if summary.image_attack is None else str(summary.images_recovered)
    return [
        str(summary.examples),
        str(summary.recovered),
        images,
        f"{summary.total_seconds:.3g}",
    ]


def table_text(records: Iterable[Record], *, has_truth: bool = True) -> str:
    """Return the closing table of a run as text."""
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        console.print(table(records, has_truth=has_truth))
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def _mass_note(summary: AttackSummary) -> str:
    if summary.mass_tv is None or summary.mass_tv_chance is None:
        return ""
    return (
        f"{summary.title}: class mass off by {_percent(summary.mass_tv)} "
        f"(guess: {_percent(summary.mass_tv_chance)})"
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _db(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
