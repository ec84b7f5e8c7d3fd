"""What a notebook shows of a run or a sweep: a headline and a small table, without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fl_sim.results.comparison import Comparison
from fl_sim.results.measures import OF_ATTACKS, OF_RUNS, Measure
from fl_sim.results.spread import Spread
from fl_sim.results.varied import short_names, shown
from fl_sim.wording import NONE, count, db, epsilon, number, percent, scientific, seconds

SHOWN = ("images_recognisable", "labels_right", "classes_right", "masses_right", "psnr_db")
UNSCORED = ("images_vouched", "labels_vouched")
"""What stands for it without a truth to compare with."""
ROWS_SHOWN = 30
_FORMATS = {
    "share": percent,
    "db": db,
    "seconds": seconds,
    "epsilon": epsilon,
    "error": scientific,
}


def formatted(value: float | None, measure: Measure) -> str:
    """Write a number of a measure with its unit."""
    if measure.unit == "count":
        return NONE if value is None else number(round(value))
    return _FORMATS[measure.unit](value)


def interval(found: Spread, measure: Measure) -> str:
    """Write the 95 % interval of a mean; "" where nothing tells it."""
    if found.low is None or found.high is None:
        return ""
    if measure.unit == "share":
        return f"{100 * found.low:.0f}–{100 * found.high:.0f}\u00a0%"
    return f"{formatted(found.low, measure)} to {formatted(found.high, measure)}"


def columns_of(comparison: Comparison) -> list[tuple[int | None, Measure]]:
    """Return what a small table shows: of each attack what is right, and the accuracy and ε."""
    columns: list[tuple[int | None, Measure]] = []
    for attack in comparison.attacks:
        known = [measure for measure in OF_ATTACKS if comparison.has(attack, measure)]
        scored = [measure for measure in known if measure.name in SHOWN]
        unscored = [measure for measure in known if measure.name in UNSCORED]
        columns += [(attack, measure) for measure in scored or unscored]
    of_runs = [measure for measure in OF_RUNS if measure.name in ("accuracy", "epsilon")]
    return columns + [(None, measure) for measure in of_runs if comparison.has(None, measure)]


def heading(comparison: Comparison, attack: int | None, measure: Measure) -> str:
    """Write a column's heading; with several attacks, which one's it is."""
    if attack is None or len(comparison.attacks) == 1:
        return measure.title
    return f"{measure.title}: {comparison.attacks[attack]}"


def cell_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return a table of cells: its headings, and a row for each, means with their intervals."""
    columns = columns_of(comparison)
    names = short_names(comparison.keys)
    headings = [*names.values(), "runs", *(heading(comparison, *column) for column in columns)]
    rows = []
    for cell, values in enumerate(comparison.cells):
        row = [*map(shown, values.values()), str(len(comparison.of_cell(cell)))]
        for attack, measure in columns:
            found = comparison.number(cell, attack, measure.name)
            ends = interval(found, measure) if found else ""
            mean = formatted(found.mean if found else None, measure)
            row.append(f"{mean} ({ends})" if ends else mean)
        rows.append(row)
    return headings, rows


def page(title: str, sentence: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return HTML: a title, a sentence and a table; all text is escaped."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>"
        for row in rows[:ROWS_SHOWN]
    )
    more = len(rows) - ROWS_SHOWN
    rest = f"<p>and {count(more, 'more row')}</p>" if more > 0 else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    return (
        f"<div><p><strong>{escape(title)}</strong></p><p>{escape(sentence)}</p>{table}{rest}</div>"
    )
