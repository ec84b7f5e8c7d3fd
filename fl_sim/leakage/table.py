"""The closing table of a run."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fl_sim.leakage.summary import AttackSummary, Record, summarize


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
    rows = [(_scored if has_truth else _unscored)(summary) for summary in summaries]
    for heading in rows[0] if rows else ():
        result.add_column(heading, justify="right")
    for summary, row in zip(summaries, rows, strict=True):
        result.add_row(Text(summary.title), Text(summary.attacker or ""), *row.values())
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


def _scored(summary: AttackSummary) -> dict[str, str]:
    """Return what a row says beside the truth, by its columns' headings."""
    has_images = summary.image_attack is not None
    psnr = f"{_db(summary.psnr_db)}\n({_db(summary.baseline_psnr_db)})"
    return {
        "examples": str(summary.examples),
        "labels\nclaimed\n(false)": f"{summary.recovered}\n({summary.false_accepts})",
        "labels\nright": _percent(summary.label_success),
        "class\nright\n(guess)": f"{_percent(summary.top1)}\n({_percent(summary.baseline_top1)})",
        "images\nclaimed\n(false)": f"{summary.images_recovered}\n({summary.false_images})"
        if has_images
        else "",
        "PSNR dB\n(mean\nimage)": psnr if has_images else "",
        "seconds": f"{summary.total_seconds:.3g}",
    }


def _unscored(summary: AttackSummary) -> dict[str, str]:
    """Return what a row says without a truth, by its columns' headings."""
    return {
        "examples": str(summary.examples),
        "labels claimed": str(summary.recovered),
        "images claimed": "" if summary.image_attack is None else str(summary.images_recovered),
        "seconds": f"{summary.total_seconds:.3g}",
    }


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
