"""What the grid of defenses comes to: the frontier of leakage and accuracy, and recommendations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from fl_sim.results.worst import in_points

Row = Mapping[str, str]
KINDS = {"labels": "labels within 0.01", "identified": "images identified"}
"""Column -> what a panel shows, of the stronger of both attackers."""
_MARKERS = "osD^vP*Xd<>ph8H"


def share_of(text: str) -> float | None:
    """Read the mean of a share as the table writes it, as in `90 % (86–93)`; None of a dash."""
    number, is_share, _ = text.removeprefix("< ").removeprefix("> ").partition(" %")
    return float(number) / 100 if is_share else None


def draw_frontier(rows: Sequence[Row]) -> Figure:
    """Draw leakage against accuracy: a panel for each setting and kind, a line for each defense."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    names = list(dict.fromkeys(row["defense"] for row in rows))
    figure = Figure(figsize=(6.4 * len(settings), 9.0), layout="constrained")
    panels = figure.subplots(len(KINDS), len(settings), squeeze=False, sharey=True)
    for line, (kind, title) in zip(panels, KINDS.items(), strict=True):
        for axes, setting in zip(line, settings, strict=True):
            for index, name in enumerate(names):
                points = _points(rows, setting, name, kind)
                if not points:
                    continue
                axes.plot(
                    *zip(*points, strict=True),
                    marker="*" if name == "none" else _MARKERS[index % len(_MARKERS)],
                    markersize=15 if name == "none" else 7,
                    color="black" if name == "none" else _color(index),
                    alpha=0.8,
                    label=name,
                )
            axes.set(title=f"{setting}: {title}", xlabel="accuracy, %", ylabel="recovered, %")
            axes.set_ylim(-4, 104)
            axes.grid(alpha=0.25)
    found = {
        label: handle
        for axes in panels.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        found.values(), found, loc="outside lower center", ncols=3 * len(settings), frameon=False
    )
    return figure


def _color(index: int) -> tuple[float, ...]:
    from matplotlib import colormaps

    return tuple(colormaps["tab20"](index % 20))


def _points(rows: Sequence[Row], setting: str, name: str, kind: str) -> list[tuple[float, float]]:
    """Return (accuracy, leakage) in per cent of each strength, in the table's order."""
    points: dict[str, tuple[float, float]] = {}
    for row in rows:
        if (row["setting"], row["defense"]) != (setting, name):
            continue
        accuracy, leakage = share_of(row["accuracy"]), share_of(row[kind])
        if accuracy is None:
            continue
        before = points.get(row["strength"], (0.0, 0.0))[1]
        points[row["strength"]] = (100 * accuracy, max(before, 100 * (leakage or 0.0)))
    return list(points.values())


def recommended(rows: Sequence[Row]) -> str:
    """Return, for each setting and defense, the weakest strength that holds, as Markdown."""
    parts = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        mine = [row for row in rows if row["setting"] == setting]
        names = [n for n in dict.fromkeys(row["defense"] for row in mine) if n != "none"]
        lines = [f"* {_line(mine, name)}" for name in names]
        parts.append("\n".join([f"**The weakest that holds, {setting}:**", "", *lines]))
    return "\n\n".join(parts)


def _line(rows: Sequence[Row], name: str) -> str:
    held = [row for row in rows if row["defense"] == name and row["holds"] == "weakest"]
    if not held:
        return f"`{name}`: none of the strengths that were tried."
    row = held[-1]  # of the aware attacker
    told, bare = (
        share_of(one["accuracy"])
        for one in (row, next((r for r in rows if r["defense"] == "none"), row))
    )
    cost = ""
    if row["defense"] != "none" and told is not None and bare is not None:
        cost = f", {in_points(bare - told)} than without"
    strength = "" if row["strength"] == "–" else f", {row['strength']}"
    bound = row["ε"] if row["ε"] == "no guarantee" else f"ε = {row['ε']}"
    return (
        f"`{name}`{strength}: accuracy {row['accuracy']}{cost}; {bound}; class counts off by "
        f"{row['class counts off by']}, a guess by {row['a guess']}."
    )
