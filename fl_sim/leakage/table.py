"""The closing table of a run."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fl_sim.leakage.leaks import Leak, Record
from fl_sim.leakage.summary import AttackSummary, summarize

_SCORED = (
    "examples",
    "images right\nvouched (wrong)",
    "labels right\nvouched (wrong)",
    "class right\n(guess)",
    "PSNR dB\n(mean image)",
    "seconds",
)
_UNSCORED = ("examples", "images vouched for", "labels vouched for", "likely", "guessed", "seconds")


def table(records: Iterable[Record], *, has_truth: bool = True) -> Table:
    """Return the closing table of a run, one row for each attack; it fits 100 columns.

    Args:
        records: the run's lines.
        has_truth: whether they are scored; without, the table says what attacks vouch for.
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
    image, label, largest = (summary.leak(kind) for kind in ("image", "label", "class"))
    psnr = f"{_db(summary.psnr_db)}\n({_db(summary.baseline_psnr_db)})"
    guess = "" if largest is None else f"\n({_percent(largest.chance)})"
    return [
        str(summary.examples),
        f"{_right(image)}\n{_vouched(image)}",
        f"{_right(label)}\n{_vouched(label)}",
        f"{_right(largest)}{guess}",
        "" if image is None else psnr,
        f"{summary.total_seconds:.3g}",
    ]


def _right(leak: Leak | None) -> str:
    right = None if leak is None or leak.right is None else leak.right.value
    return "" if leak is None else _percent(right)


def _vouched(leak: Leak | None) -> str:
    return "" if leak is None else f"{leak.vouched.count} ({leak.false})"


def _unscored(summary: AttackSummary) -> list[str]:
    image, label = summary.leak("image"), summary.leak("label")
    return [
        str(summary.examples),
        "" if image is None else str(image.vouched.count),
        "" if label is None else str(label.vouched.count),
        str(sum(leak.likely for leak in summary.claims)),
        str(sum(leak.guessed for leak in summary.claims)),
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
