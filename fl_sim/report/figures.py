"""The report's figures: leakage and training over rounds."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fl_sim.leakage.leaks import Record
from fl_sim.leakage.summary import AttackSummary, RoundLeakage
from fl_sim.report.drawing import MUTED, SERIES, Drawing, drawn, new_axes, plot, share_axis
from fl_sim.wording import epsilon as format_epsilon


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
    accuracy = _points(rounds, "accuracy")
    if accuracy:
        drawings.append(_accuracy(accuracy))
    bounds = {name: _points(rounds, key) for key, name in EPSILONS.items()}
    if any(bounds.values()):
        drawings.append(_epsilon({name: points for name, points in bounds.items() if points}))
    return drawings


EPSILONS = {
    "epsilon": "claimed: at most",
    "canary_updates_epsilon": "canaries in their updates: at least",
    "canary_model_epsilon": "canaries in the model: at least",
}
"""Key of a line in `rounds.jsonl` -> what ε it is."""


def _points(rounds: Sequence[Record], key: str) -> list[tuple[int, float]]:
    return [(line["round"], line[key]) for line in rounds if line.get(key) is not None]


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
    figure, axes = new_axes("share of examples")
    share_axis(axes)
    for attack, lines in series.items():
        plot(axes, attack, [(x.round, x.label_success) for x in lines], names[attack])
    _baseline(axes, series, lambda x: x.baseline_top1, "majority-class guess (class only)")
    alt = _ends(
        "Labels recovered, as a share of examples", series, names, lambda x: x.label_success
    )
    return drawn("label_success", "Labels recovered (L∞ < 0.01)", alt, figure, axes)


def _psnr(series: dict[int, list[RoundLeakage]], names: dict[int, str]) -> Drawing:
    figure, axes = new_axes("PSNR (dB)")
    for attack, lines in series.items():
        at = [x.round for x in lines]
        low, high = ([_shown(x) for x in band] for band in zip(*map(_band, lines), strict=True))
        color = SERIES[attack % len(SERIES)]
        if len(at) == 1:  # a band has no width there
            axes.vlines(at, low, high, color=color, alpha=0.4, linewidth=5)
        axes.fill_between(at, low, high, color=color, alpha=0.16, linewidth=0)
        plot(axes, attack, [(x.round, _shown(x.psnr_db)) for x in lines], names[attack])
    _baseline(axes, series, lambda x: x.baseline_psnr_db, "mean image")
    axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])  # a marker at 0 dB clears the numbers
    alt = _ends("Median PSNR in dB", series, names, lambda x: x.psnr_db)
    return drawn("psnr", "Image quality: median, 10–90 % band", alt, figure, axes)


def _accuracy(points: list[tuple[int, float]]) -> Drawing:
    figure, axes = new_axes("accuracy")
    plot(axes, 0, points, None)
    share_axis(axes)
    title = "Accuracy on the server's test examples"
    return drawn("accuracy", title, f"{title}: {_from_to(points)}.", figure, axes)


def _epsilon(lines: dict[str, list[tuple[int, float]]]) -> Drawing:
    figure, axes = new_axes("ε")
    for index, (name, points) in enumerate(lines.items()):
        plot(axes, index, points, name if len(lines) > 1 else None)
    axes.set_ylim(bottom=0.0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_epsilon(value)))
    told = "; ".join(f"{name}, {_from_to(points)}" for name, points in lines.items())
    if len(lines) == 1 and EPSILONS["epsilon"] in lines:
        told = _from_to(lines[EPSILONS["epsilon"]])
    return drawn("epsilon", "Privacy ε", f"Privacy ε: {told}.", figure, axes)


def _from_to(points: list[tuple[int, float]]) -> str:
    (first, start), (last, end) = points[0], points[-1]
    return f"{start:.3g} at round {first}, {end:.3g} at round {last}"


def _band(line: RoundLeakage) -> tuple[float | None, float | None]:
    return line.psnr_low_db, line.psnr_high_db


def _shown(psnr_db: float | None) -> float:
    """Return where a PSNR is drawn: a failed example at 0 dB, as far off as pixels can be."""
    return 0.0 if psnr_db is None else psnr_db


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
        axes.plot(at, values, color=MUTED, linestyle=":", linewidth=1.5, marker=marker, label=label)


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
