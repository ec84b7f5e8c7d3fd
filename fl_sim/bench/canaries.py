"""What canaries bound ε by, over rounds, beside what is claimed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure

from fl_sim.bench.recorded import recorded
from fl_sim.leakage.leaks import Record
from fl_sim.scenario import Scenario

SEEDS, CLIENTS, CANARIES, ROUNDS = 3, 60, 40, 16
NOISES: tuple[float, ...] = (0.5, 1.0, 4.0)
"""Noise multipliers."""
VIEWS = {"updates": "their updates", "round": "the round's model", "model": "the model"}
TITLE = "ε that canaries show a run to have at least, beside the ε that it claims"
NOTES = (
    f"`lenet5` on `mnist-5k`, {CLIENTS} clients, all in every round, {CANARIES} of them canaries, "
    "`dp-noise` with norm 1, one step on 20 examples, lr 0.1; δ = 1e-5. Mean of "
    f"{SEEDS} seeds (least to most); each bound holds with 95 % confidence, for normal noise.",
    "*Their updates*: what is found of each canary's vector in all that it sent so far, which is "
    "what the claim speaks of. It stays below for two reasons: the claim covers any two updates of "
    "norm C, 2C apart, and a canary is told from one that sends another vector, C away; and it is "
    "a lower confidence limit. *The model*: what is found in it, behind all other clients' noise. "
    "*Beyond* counts bounds above the claim, in all seeds, rounds and views: 5 % of them may be.",
    "Canaries take part in training and spoil it: the accuracy is no defense's.",
)


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Run each noise level; a quick run takes one seed and four rounds."""
    seeds = range(seed, seed + (1 if quick else SEEDS))
    for noise in NOISES:
        by_round = defaultdict(list)
        for each in seeds:
            for line in _rounds(noise, 4 if quick else ROUNDS, each):
                by_round[line["round"]].append(line)
        for server_round, lines in by_round.items():
            if server_round & (server_round - 1) == 0:  # 1, 2, 4, 8, 16
                yield _row(noise, server_round, lines)


def _rounds(noise: float, rounds: int, seed: int) -> list[Record]:
    scenario = Scenario.parse(
        {
            "seed": seed,
            "rounds": rounds,
            "data": {"name": "mnist-5k", "clients": CLIENTS},
            "model": {"name": "lenet5", "bias": True},
            "client": {"batch_size": 20},
            "audit": {"canaries": CANARIES},
            "defense": [{"name": "dp-noise", "clipping_norm": 1.0, "noise_multiplier": noise}],
        }
    )
    return recorded(scenario).rounds[1:]


def _row(noise: float, server_round: int, lines: Sequence[Record]) -> dict[str, object]:
    claimed = float(lines[0]["epsilon"])
    bounds = {view: [line[f"canary_{view}_epsilon"] for line in lines] for view in VIEWS}
    return {
        "noise multiplier": f"{noise:g}",
        "round": server_round,
        "claimed ε": f"{claimed:.3g}",
        **{VIEWS[view]: _spread(values) for view, values in bounds.items()},
        "beyond": sum(value > claimed for values in bounds.values() for value in values),
        "accuracy": f"{sum(line['accuracy'] for line in lines) / len(lines):.2f}",
    }


def _spread(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.3g} ({min(values):.3g} to {max(values):.3g})"


def figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw claim and bounds over rounds, a panel for each noise level."""
    drawing = Figure(figsize=(9.0, 3.4), layout="constrained")
    noises = list(dict.fromkeys(row["noise multiplier"] for row in rows))
    panels = drawing.subplots(1, len(noises), squeeze=False)[0]
    for axes, noise in zip(panels, noises, strict=True):
        own = [row for row in rows if row["noise multiplier"] == noise]
        at = [row["round"] for row in own]
        axes.plot(at, [float(row["claimed ε"]) for row in own], "o-", label="claimed: at most")
        for view, marker in (("updates", "s--"), ("model", "D-.")):
            found = [row[VIEWS[view]].replace("(", "").replace(")", "").split() for row in own]
            mean, low, high = ([float(part[i]) for part in found] for i in (0, 1, 3))
            label = f"canaries in {VIEWS[view]}: at least"
            [line] = axes.plot(at, mean, marker, label=label)
            axes.fill_between(at, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(title=f"noise multiplier {noise}", xlabel="round", xscale="log")
        axes.set_xticks(at, [str(x) for x in at], minor=False)
        axes.minorticks_off()
        axes.set_ylim(bottom=0.0)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("ε at δ = 1e-5")
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return drawing
