"""The page that compares runs: one self-contained file, its figures, and a table of all numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fl_sim.report.comparison_figures import draw_curves
from fl_sim.report.examples import Pair, image_pairs
from fl_sim.report.heat import heat_maps
from fl_sim.report.template import template
from fl_sim.results.comparison import ComparedRun, Comparison
from fl_sim.results.display import columns_of, formatted, heading, interval
from fl_sim.results.frames import runs_frame, write_frames
from fl_sim.results.measures import Measure
from fl_sim.results.recorded import RecordedRun
from fl_sim.results.varied import described, short_names, shown
from fl_sim.results.worst import BAR, recommendations
from fl_sim.wording import count

PICTURED_CELLS, PAIRS_OF_A_CELL = 36, 4


@dataclass(frozen=True)
class Line:
    """A row of the table of cells: its values, its runs, and its numbers.

    A number is its mean, its interval, its median and what a guess reaches, each "" if unknown.
    """

    values: list[str]
    runs: int
    numbers: list[tuple[str, str, str, str]]


@dataclass(frozen=True)
class Pictures:
    """Reconstructions of a cell, from the run that is named."""

    cell: str
    run: str
    pairs: list[Pair]


def build_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write `report.html`, `figures/*.png` and `table.csv` (with pyarrow `table.parquet`, too).

    Args:
        comparison: what is compared; it needn't be finished.
        folder: where to write; made if it is missing.

    Returns:
        The page's path.

    Raises:
        UserError: a file of a run isn't what it should be.
    """
    drawings = draw_curves(comparison)
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        (figures / f"{drawing.name}.png").write_bytes(drawing.png)
    table = {"table": runs_frame(comparison)}
    write_frames(table, folder, as_parquet=False)
    if find_spec("pyarrow") is not None:
        write_frames(table, folder, as_parquet=True)
    page = template("comparison.html.md").render(_context(comparison), drawings=drawings)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _context(comparison: Comparison) -> dict[str, Any]:
    """Gather what the page shows, figures apart."""
    columns = columns_of(comparison)
    failed = [run for run in comparison.runs if run.sentence]
    unfinished = [run for run in comparison.runs if not run.is_finished and not run.sentence]
    return {
        "title": comparison.title,
        "outcome": outcome(comparison),
        "progress": comparison.progress,
        "keys": short_names(comparison.keys),
        "headings": [heading(comparison, *column) for column in columns],
        "notes": dict.fromkeys(f"{m.title}: {m.note}" for _, m in columns if m.note),
        "lines": [_line(comparison, cell) for cell in range(len(comparison.cells))],
        "flags": [
            (described(values) or "all runs", found)
            for cell, values in enumerate(comparison.cells)
            if (found := comparison.flags(cell))
        ],
        "recommended": recommendations(comparison),
        "bar": BAR,
        "maps": heat_maps(comparison, columns),
        "pictures": pictures(comparison),
        "failed": failed,
        "unfinished": unfinished,
        "runs": [(run, _last(run)) for run in comparison.runs],
        "scenario": None
        if comparison.scenario is None
        else json.dumps(comparison.scenario, indent=2, ensure_ascii=False),
        "seeds": sorted({run.seed for run in comparison.runs if run.seed is not None}),
    }


def outcome(comparison: Comparison) -> str:
    """Say how strong the strongest kind of leak is, and of the first that differs, where."""
    first = None
    for attack, measure in columns_of(comparison):
        means = {
            cell: found.mean
            for cell in range(len(comparison.cells))
            if (found := comparison.number(cell, attack, measure.name)) is not None
        }
        if not means:
            continue
        said = _between(comparison, attack, measure, means)
        if len({*means.values()}) > 1:
            return f"{first} {said}" if first else said
        first = first or said
    return first or "There is no number to compare yet."


def _between(
    comparison: Comparison, attack: int | None, measure: Measure, means: Mapping[int, float]
) -> str:
    title = heading(comparison, attack, measure)
    least, most = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    low, high = (formatted(means[cell], measure) for cell in (least, most))
    if low == high:
        where = "in every cell" if len(means) > 1 else "over all runs"
        return f"{title}: {low} {where}."
    names = [described(comparison.cells[cell]) for cell in (least, most)]
    return f"{title}: from {low} with {names[0]} to {high} with {names[1]}."


def _line(comparison: Comparison, cell: int) -> Line:
    numbers = []
    for attack, measure in columns_of(comparison):
        found = comparison.number(cell, attack, measure.name)
        guess = measure.guess and comparison.number(cell, attack, measure.guess)
        if found is None:
            numbers.append((formatted(None, measure), "", "", ""))
            continue
        mean, median = (formatted(value, measure) for value in (found.mean, found.median))
        guessed = formatted(guess.mean, measure) if guess else ""
        numbers.append((mean, interval(found, measure), median, guessed))
    values = [shown(value) for value in comparison.cells[cell].values()]
    return Line(values, len(comparison.of_cell(cell)), numbers)


def pictures(comparison: Comparison) -> list[Pictures]:
    """Return some reconstructions of each cell, from the first of its runs that kept any."""
    found = []
    for cell, values in enumerate(comparison.cells):
        for run in comparison.of_cell(cell):
            records = RecordedRun.read(run.path).records
            pairs = image_pairs(run.path / "images", records, PAIRS_OF_A_CELL)
            if pairs:
                name = described(values) or "all runs"
                found.append(Pictures(name, run.name, pairs[:PAIRS_OF_A_CELL]))
                break
        if len(found) == PICTURED_CELLS:
            break
    return found


def _last(run: ComparedRun) -> str:
    if not run.numbers:
        return "failed" if run.sentence else "not finished"
    rounds = count(int(run.numbers["rounds"] or 0), "round")
    return rounds if run.is_finished else f"{rounds}, not finished"
