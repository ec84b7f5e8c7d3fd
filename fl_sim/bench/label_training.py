"""Label recovery over rounds of federated training: float32 weight updates at every round."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure

from fl_sim.bench.recorded import recorded
from fl_sim.bench.victims import INITS, inits
from fl_sim.leakage.leaks import Record
from fl_sim.scenario import Scenario

TITLE = (
    "Soft labels over rounds of federated training: 20 clients, each with an update of one "
    "example at lr 0.1"
)
NOTES = (
    "Each client sends one step on one example a round, so the network learns slowly.",
    INITS,
)
SMOOTHING = {"name": "label-smoothing", "smoothing": [0.0, 0.5]}
MIXUP = {"name": "mixup", "alpha": 1.0}
SPANS = ((1, 1), (2, 5), (6, 20), (21, 50), (51, 100))
"""Rounds that share a row."""
NETWORKS = (
    *(("fcn4", False, init) for init in inits("fcn4")),
    *(("lenet", False, init) for init in inits("lenet")),
    ("lenet", True, "default"),
)
"""Each with whether it has biases, and its initial weights."""


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure; one row for each network, initialisation, augmentation and span of rounds."""
    spans, defenses = SPANS[: 2 if quick else None], (SMOOTHING, MIXUP)[: 1 if quick else None]
    for network, bias, init in NETWORKS:
        for defense in defenses:
            records, rounds = _run(network, bias, init, defense, spans[-1][1], seed)
            for first, last in spans:
                some = [r for r in records if first <= r["round"] <= last]
                accuracy = next(line["accuracy"] for line in rounds if line["round"] == last)
                claims = [r for r in some if r["label_status"] == "RECOVERED"]
                errors = [1.0 if r["label_linf"] is None else r["label_linf"] for r in some]
                yield {
                    "network": network,
                    "bias": "yes" if bias else "no",
                    "init": init,
                    "augmentation": defense["name"],
                    "rounds": f"{first}–{last}" if first < last else f"{first}",
                    "accuracy": f"{accuracy:.2f}",
                    "updates": len(some),
                    "L∞ < 1e-3": sum(error < 1e-3 for error in errors),
                    "RECOVERED": len(claims),
                    "false": sum((r["label_linf"] or 0) >= 1e-2 for r in claims),
                    "median L∞": f"{statistics.median(errors):.1e}",
                }


def _run(
    network: str, bias: bool, init: str, defense: dict[str, Any], rounds: int, seed: int
) -> tuple[list[Record], list[Record]]:
    scenario = Scenario.parse(
        {
            "seed": seed,
            "rounds": rounds,
            "data": {"name": "mnist-5k", "clients": 20, "test_examples": 500},
            "model": {"name": network, "bias": bias, "init": init},
            "client": {"lr": 0.1},
            "defense": [defense],
            "attack": [{"label": "soft-label", "attacker": "unaware"}],
        }
    )
    found = recorded(scenario)
    return found.records, found.rounds


def figure(found: Sequence[dict[str, Any]]) -> Figure:
    """Draw the share within 1e-3 over the rounds, a panel for each initialisation."""
    kinds = list(dict.fromkeys(row["init"] for row in found))
    drawing = Figure(figsize=(3.4 * len(kinds), 3.2), layout="constrained")
    axes = drawing.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    keys = ("network", "bias", "augmentation")
    for axis, init in zip(axes, kinds, strict=True):
        shown = [row for row in found if row["init"] == init]
        for setting in dict.fromkeys(tuple(row[key] for key in keys) for row in shown):
            some = [row for row in shown if tuple(row[key] for key in keys) == setting]
            network, bias, augmentation = setting
            label = f"{network}{', bias' if bias == 'yes' else ''}, {augmentation}"
            shares = [row["L∞ < 1e-3"] / row["updates"] for row in some]
            axis.plot([row["rounds"] for row in some], shares, "o-", label=label)
        axis.set_title(init, fontsize=9)
        axis.set_xlabel("rounds")
        axis.set_ylim(0, 1.05)
        axis.legend(fontsize=6)
    axes[0].set_ylabel("share with L∞ < 1e-3")
    return drawing
