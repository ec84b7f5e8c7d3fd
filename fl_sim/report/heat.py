"""Heat maps, where two keys vary: a table whose cells have the more colour the higher they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fl_sim.results.comparison import Comparison
from fl_sim.results.display import formatted, heading, interval
from fl_sim.results.measures import Measure
from fl_sim.results.varied import described, short_names, shown

MAPS_SHOWN = 24
_STRONG = 0.55
"""Share of full colour from which text has the colour of the page."""


@dataclass(frozen=True)
class Square:
    """A cell: its text, the interval, how much colour it has in [0, 1], whether that is strong."""

    text: str
    interval: str
    heat: float
    is_strong: bool


@dataclass(frozen=True)
class HeatMap:
    """A share over two keys, means over the seeds."""

    title: str
    row_key: str
    column_key: str
    columns: list[str]
    rows: list[tuple[str, list[Square]]]


def heat_maps(
    comparison: Comparison, columns: Sequence[tuple[int | None, Measure]]
) -> list[HeatMap]:
    """Return a map of each share over the last two keys, one for each value of further keys.

    There is none where cells don't fill the grid, as with zipped keys.
    """
    keys = comparison.keys
    values = {key: _distinct(cell[key] for cell in comparison.cells) for key in keys}
    size = math.prod(len(found) for found in values.values())
    if len(keys) < 2 or len(comparison.cells) != size:
        return []
    outer = _distinct({key: cell[key] for key in keys[:-2]} for cell in comparison.cells)
    maps = []
    for attack, measure in columns:
        if measure.unit == "share":
            maps += [_map(comparison, attack, measure, values, fixed) for fixed in outer]
    return maps[:MAPS_SHOWN]


def _map(
    comparison: Comparison,
    attack: int | None,
    measure: Measure,
    values: Mapping[str, Sequence[Any]],
    fixed: Mapping[str, Any],
) -> HeatMap:
    short = short_names(comparison.keys)
    row_key, column_key = comparison.keys[-2:]
    rows = []
    for row in values[row_key]:
        squares = []
        for column in values[column_key]:
            cell = [*comparison.cells].index({**fixed, row_key: row, column_key: column})
            squares.append(_square(comparison, cell, attack, measure))
        rows.append((shown(row), squares))
    title = heading(comparison, attack, measure)
    return HeatMap(
        f"{title} ({described(fixed)})" if fixed else title,
        short[row_key],
        short[column_key],
        [shown(column) for column in values[column_key]],
        rows,
    )


def _square(comparison: Comparison, cell: int, attack: int | None, measure: Measure) -> Square:
    found = comparison.number(cell, attack, measure.name)
    if found is None:
        return Square(formatted(None, measure), "", 0.0, False)
    heat = min(max(found.mean, 0.0), 1.0)
    text = formatted(found.mean, measure)
    return Square(text, interval(found, measure), heat, heat > _STRONG)


def _distinct(values: Any) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
