"""The report's figures: inline SVG in the page's colours, and PNG on white."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from fl_sim.leakage.leaks import Record
from fl_sim.leakage.summary import AttackSummary, RoundLeakage
from fl_sim.wording import epsilon as format_epsilon

_TEXT, _MUTED = "#1c2024", "#5a626c"
# Colour-blind safe, and each dark enough for white paper; the page has lighter ones for dark mode.
_SERIES = ("#0067a5", "#c24e00", "#00765a", "#a03f82", "#7a6200", "#4d5359")
_LINES, _MARKERS = ("-", "--", "-.", ":"), "osD^vP"
_CSS = {_TEXT: "currentColor", _MUTED: "var(--muted)"} | {
    color: f"var(--series-{index})" for index, color in enumerate(_SERIES)
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


def draw_figures(
    leakage: Sequence[RoundLeakage], rounds: Sequence[Record], summaries: Sequence[AttackSummary]
) -> list[Drawing]:
    """Draw what there is data for: label success, PSNR, accuracy, ε."""
    names = {summary.attack: _name(summary, summaries) for summary in summaries}
    series = {attack: [line for line in leakage if line.attack == attack] for attack in names}
    with_images = {
        attack: lines
        for attack, lines in series.items()
        if any(line.psnr_high_db is not None for line in lines)
    }
    drawings = []
    with_labels = {
        attack: lines
        for attack, lines in series.items()
        if any(line.label_success is not None for line in lines)
    }
    if with_labels:
        drawings.append(_label_success(with_labels, names))
    if with_images:
        drawings.append(_psnr(with_images, names))
    for name, title, key in (
        ("accuracy", "Accuracy on the server's test examples", "accuracy"),
        ("epsilon", "Privacy ε", "epsilon"),
    ):
        points = [(line["round"], line[key]) for line in rounds if line.get(key) is not None]
        if points:
            drawings.append(_training(name, title, points))
    return drawings


def _name(summary: AttackSummary, summaries: Sequence[AttackSummary]) -> str:
    """Name an attack in a legend, with what tells it from others of the same title."""
    alike = [other for other in summaries if other.title == summary.title]
    title = re.sub(r"\S+:", "", summary.title)  # of module:attr, the attr
    if len(alike) == 1:
        return title
    attackers = [other.attacker for other in alike]
    mark = summary.attacker if len({*attackers}) == len(alike) else f"#{summary.attack}"
    return f"{title} ({mark})"


def _label_success(series: dict[int, list[RoundLeakage]], names: dict[int, str]) -> Drawing:
    figure, axes = _axes("share of examples")
    _share_axis(axes)
    for attack, lines in series.items():
        _plot(axes, attack, [(x.round, x.label_success) for x in lines], names[attack])
    _baseline(axes, series, lambda x: x.baseline_top1, "majority-class guess (class only)")
    alt = _ends(
        "Labels recovered, as a share of examples", series, names, lambda x: x.label_success
    )
    return _drawing("label_success", "Labels recovered (L∞ < 0.01)", alt, figure, axes)


def _psnr(series: dict[int, list[RoundLeakage]], names: dict[int, str]) -> Drawing:
    figure, axes = _axes("PSNR (dB)")
    for attack, lines in series.items():
        at = [x.round for x in lines]
        low, high = ([_shown(x) for x in band] for band in zip(*map(_band, lines), strict=True))
        color = _SERIES[attack % len(_SERIES)]
        if len(at) == 1:  # a band has no width there
            axes.vlines(at, low, high, color=color, alpha=0.4, linewidth=5)
        axes.fill_between(at, low, high, color=color, alpha=0.16, linewidth=0)
        _plot(axes, attack, [(x.round, _shown(x.psnr_db)) for x in lines], names[attack])
    _baseline(axes, series, lambda x: x.baseline_psnr_db, "mean image")
    axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])  # a marker at 0 dB clears the numbers
    alt = _ends("Median PSNR in dB", series, names, lambda x: x.psnr_db)
    return _drawing("psnr", "Image quality: median, 10–90 % band", alt, figure, axes)


def _training(name: str, title: str, points: list[tuple[int, float]]) -> Drawing:
    figure, axes = _axes("accuracy" if name == "accuracy" else "ε")
    _plot(axes, 0, points, None)
    if name == "accuracy":
        _share_axis(axes)
    else:
        axes.set_ylim(bottom=0.0)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_epsilon(value)))
    (first, start), (last, end) = points[0], points[-1]
    alt = f"{title}: {start:.3g} at round {first}, {end:.3g} at round {last}."
    return _drawing(name, title, alt, figure, axes)


def _band(line: RoundLeakage) -> tuple[float | None, float | None]:
    return line.psnr_low_db, line.psnr_high_db


def _shown(psnr_db: float | None) -> float:
    """Return where a PSNR is drawn: a failed example at 0 dB, as far off as pixels can be."""
    return 0.0 if psnr_db is None else psnr_db


def _axes(y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.0, _HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("round", color=_TEXT, fontsize=_FONT_SIZE)
    axes.set_ylabel(y_label, color=_TEXT, fontsize=_FONT_SIZE)
    axes.tick_params(colors=_TEXT, labelsize=_FONT_SIZE, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.grid(axis="y", color=_MUTED, alpha=0.25, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    return figure, axes


def _share_axis(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def _plot(
    axes: Axes, index: int, points: Sequence[tuple[int, float | None]], label: str | None
) -> None:
    known = [(x, y) for x, y in points if y is not None]
    axes.plot(
        [x for x, _ in known],
        [y for _, y in known],
        color=_SERIES[index % len(_SERIES)],
        linestyle=_LINES[index % len(_LINES)],
        marker=_MARKERS[index % len(_MARKERS)] if len(known) <= _MARKED_POINTS else None,
        markersize=max(4.0, 7.0 - index),  # lines that coincide stay visible
        linewidth=1.8,
        label=label,
        clip_on=False,
    )


def _baseline(
    axes: Axes,
    series: dict[int, list[RoundLeakage]],
    read: Callable[[RoundLeakage], float | None],
    label: str,
) -> None:
    """Draw what a guess reaches: of each round, the value from the attack on most examples."""
    best: dict[int, tuple[int, float]] = {}
    for line in (line for lines in series.values() for line in lines):
        value = read(line)
        if value is not None and line.examples > best.get(line.round, (0, 0.0))[0]:
            best[line.round] = (line.examples, value)
    at = sorted(best)
    marker = "_" if len(at) == 1 else None
    values = [best[x][1] for x in at]
    if at:
        axes.plot(
            at, values, color=_MUTED, linestyle=":", linewidth=1.5, marker=marker, label=label
        )


def _ends(
    what: str,
    series: dict[int, list[RoundLeakage]],
    names: dict[int, str],
    read: Callable[[RoundLeakage], float | None],
) -> str:
    """Describe lines by their first and last values."""

    def value(line: RoundLeakage) -> str:
        known = read(line)
        return "none" if known is None else f"{known:.3g}"

    ends = [
        f"{names[attack]}: {value(lines[0])} in round {lines[0].round}, "
        f"{value(lines[-1])} in round {lines[-1].round}"
        for attack, lines in series.items()
    ]
    return f"{what}. {'; '.join(ends)}."


def _drawing(name: str, title: str, alt: str, figure: Figure, axes: Axes) -> Drawing:
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
