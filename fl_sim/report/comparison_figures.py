"""Curves over rounds of runs beside each other: a line for each cell, with its 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_sim.report.drawing import SERIES, Drawing, drawn, new_axes, plot, share_axis
from fl_sim.results.comparison import Comparison
from fl_sim.results.display import heading
from fl_sim.results.measures import OF_ATTACKS, OF_RUNS, Measure
from fl_sim.results.spread import Spread
from fl_sim.results.varied import described, short_names, shown

CURVES = ("images_recognisable", "labels_right", "masses_right", "accuracy")
PANELS_SHOWN = 6
LINES_SHOWN = 12


def draw_curves(comparison: Comparison) -> list[Drawing]:
    """Draw each share over rounds: a figure for each value of all keys but the last.

    A figure has a line for each value of the last key.
    """
    shares = [
        (attack, measure)
        for attack in (*comparison.attacks, None)
        for measure in (OF_RUNS if attack is None else OF_ATTACKS)
        if measure.name in CURVES and comparison.has(attack, measure)
    ]
    return [
        drawing
        for attack, measure in shares
        for number, (fixed, cells) in enumerate(_panels(comparison)[:PANELS_SHOWN])
        if (drawing := _panel(comparison, attack, measure, number, fixed, cells)) is not None
    ]


def _panels(comparison: Comparison) -> list[tuple[dict[str, Any], list[int]]]:
    """Return for each combination of all keys but the last the cells that have it."""
    panels: list[tuple[dict[str, Any], list[int]]] = []
    for cell, values in enumerate(comparison.cells):
        fixed = {key: values[key] for key in comparison.keys[:-1]}
        for other, cells in panels:
            if other == fixed:
                cells.append(cell)
                break
        else:
            panels.append((fixed, [cell]))
    if len(panels) == len(comparison.cells) > 1:  # zipped, or unlike runs: one figure of all
        return [({}, list(range(len(comparison.cells))))]
    return panels


def _panel(
    comparison: Comparison,
    attack: int | None,
    measure: Measure,
    number: int,
    fixed: Mapping[str, Any],
    cells: list[int],
) -> Drawing | None:
    curves = {cell: comparison.curve(cell, attack, measure.name) for cell in cells[:LINES_SHOWN]}
    curves = {cell: curve for cell, curve in curves.items() if curve}
    if not curves:
        return None
    figure, axes = new_axes("accuracy" if attack is None else "share of examples")
    share_axis(axes)
    names = {cell: _name(comparison, cell, fixed) for cell in curves}
    for index, (cell, curve) in enumerate(curves.items()):
        _band(axes, index, curve)
        plot(axes, index, [(at, found.mean) for at, found in curve.items()], names[cell])
    title = heading(comparison, attack, measure)
    if fixed:
        title += f" ({described(fixed)})"
    ends = "; ".join(
        f"{names[cell] or 'all runs'}: {_ends(curve)}" for cell, curve in curves.items()
    )
    name = f"{measure.name}-{'runs' if attack is None else attack}-{number}"
    return drawn(name, title, f"{title}, means over seeds. {ends}.", figure, axes)


def _name(comparison: Comparison, cell: int, fixed: Mapping[str, Any]) -> str | None:
    """Name a line by what tells it from others of its figure; None where it is the only one."""
    values = {k: v for k, v in comparison.cells[cell].items() if k not in fixed}
    if not values:
        return None
    short = short_names(comparison.keys)
    return ", ".join(f"{short[key]} {shown(value)}" for key, value in values.items())


def _band(axes: Any, index: int, curve: Mapping[int, Spread]) -> None:
    known = {at: found for at, found in curve.items() if found.low is not None}
    low = [found.low for found in known.values()]
    high = [found.high for found in known.values()]
    color = SERIES[index % len(SERIES)]
    if len(known) == 1:  # a band has no width there
        axes.vlines(list(known), low, high, color=color, alpha=0.4, linewidth=5)
    axes.fill_between(list(known), low, high, color=color, alpha=0.12, linewidth=0)


def _ends(curve: Mapping[int, Spread]) -> str:
    first, last = min(curve), max(curve)
    return f"{curve[first].mean:.3g} in round {first}, {curve[last].mean:.3g} in round {last}"
