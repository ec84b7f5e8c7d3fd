"""How figures are drawn: inline SVG in the page's colours, and PNG on white."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

_TEXT, MUTED = "#1c2024", "#5a626c"
# Colour-blind safe, and each dark enough for white paper; the page has lighter ones for dark mode.
SERIES = ("#0067a5", "#c24e00", "#00765a", "#a03f82", "#7a6200", "#4d5359")
_LINES, MARKERS = ("-", "--", "-.", ":"), "osD^vP"
_CSS = {_TEXT: "currentColor", MUTED: "var(--muted)"} | {
    color: f"var(--series-{index})" for index, color in enumerate(SERIES)
}
_HEIGHT = 2.7  # inches, without a legend
_FONT_SIZE = 11  # points; a phone shows the figure at nine tenths
_MARKED_POINTS = 40  # beyond, markers hide the line


@dataclass(frozen=True)
class Drawing:
    """A figure twice: `svg` for the page, `png` for elsewhere; `alt` says what it shows."""

    name: str
    title: str
    alt: str
    svg: str
    png: bytes


def new_axes(y_label: str) -> tuple[Figure, Axes]:
    """Return an empty figure over rounds, and its axes."""
    figure = Figure(figsize=(5.0, _HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("round", color=_TEXT, fontsize=_FONT_SIZE)
    axes.set_ylabel(y_label, color=_TEXT, fontsize=_FONT_SIZE)
    axes.tick_params(colors=_TEXT, labelsize=_FONT_SIZE, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.grid(axis="y", color=MUTED, alpha=0.25, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    return figure, axes


def share_axis(axes: Axes) -> None:
    """Let an axis go from 0 to 100 %."""
    axes.set_ylim(-0.03, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def plot(
    axes: Axes, index: int, points: Sequence[tuple[float, float | None]], label: str | None
) -> None:
    """Draw a line that differs from those of other indices in colour, dashes and marker."""
    known = [(x, y) for x, y in points if y is not None]
    axes.plot(
        [x for x, _ in known],
        [y for _, y in known],
        color=SERIES[index % len(SERIES)],
        linestyle=_LINES[index % len(_LINES)],
        marker=MARKERS[index % len(MARKERS)] if len(known) <= _MARKED_POINTS else None,
        markersize=max(4.0, 7.0 - index),  # lines that coincide stay visible
        linewidth=1.8,
        label=label,
        clip_on=False,
    )


def drawn(name: str, title: str, alt: str, figure: Figure, axes: Axes) -> Drawing:
    """Put the legend below a figure, and return it as a drawing."""
    if axes.dataLim.width == 0:  # one round: no room for other numbers
        axes.set_xticks([axes.dataLim.x0], [f"{axes.dataLim.x0:.0f}"])
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        # Names are a user's: a dollar sign would start a formula.
        labels = [textwrap.fill(label, 48).replace("$", r"\$") for label in labels]
        figure.set_figheight(_HEIGHT + 0.22 * sum(1 + label.count("\n") for label in labels))
        figure.legend(
            handles,
            labels,
            loc="outside lower left",
            frameon=False,
            labelcolor=_TEXT,
            fontsize=_FONT_SIZE,
        )
    png = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(png, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    return Drawing(name, title, alt, _svg(figure, name), png.getvalue())


def _svg(figure: Figure, name: str) -> str:
    """Return SVG for inlining: text as text, the page's colours, ids that no other figure has."""
    buffer = io.StringIO()
    # These two have no argument of their own; the context puts them back.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # A style element would reach the whole page.
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)  # HTML knows them
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg)( width="[^"]*"| height="[^"]*")*', r'\1 aria-hidden="true"', svg, count=1)
    for color, css in _CSS.items():
        svg = svg.replace(color, css)
    return svg.strip()
