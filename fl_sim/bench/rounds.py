"""What updates leak as training goes on: attacks at chosen rounds of a sweep."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fl_sim.report.drawing import MUTED, plot, share_axis
from fl_sim.results.comparison import Comparison
from fl_sim.results.spread import Spread
from fl_sim.scenario import Scenario
from fl_sim.sweep import run_sweep
from fl_sim.sweep.grid import Axis, Grid

ROUNDS, SEEDS = (1, 2, 5, 10, 50), 3
QUICK_ROUNDS, QUICK_DEFENSES = (1, 2), ("none", "smoothing")
DEFENSES: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "smoothing": [{"name": "label-smoothing", "smoothing": 0.1}],
    "mixup": [{"name": "mixup", "alpha": 1.0}],
    "dp-noise": [{"name": "dp-noise", "noise_std": 1e-4}],
}
EPOCH = {"local_epochs": 1, "batch_size": 4}
TRAININGS: dict[str, dict[str, int]] = {
    "B = 1": {"batch_size": 1},
    "B = 16": {"batch_size": 16},
    "epoch": EPOCH,
}
INITS = {"mlp": "default", "lenet": "dlg"}
CLIENTS, COUNTED = 10, 4
EXACT: dict[tuple[str, str], tuple[str, int]] = {
    ("mlp", "B = 1"): ("analytic", 10),
    ("mlp", "B = 16"): ("analytic", 2),
    ("mlp", "epoch"): ("analytic", 1),
    ("lenet", "B = 1"): ("r-gap", 4),
}
"""(network, training) -> the image attack that goes with `soft-label`, and on how many clients."""
TITLE = "What updates leak as training goes on: labels, images and class mass beside the accuracy"
NOTES = (
    f"`mnist-5k` split evenly over {CLIENTS} clients, FedAvg, one step a round at lr 0.1 (B = 1, "
    "B = 16), or, as *epoch*, one epoch over the same 16 examples of each client in shuffled "
    "batches of 4; float32 weights without biases in linear layers. `mlp` (784-512-512-10) under "
    "PyTorch's own initialisation; `lenet` under that of DLG, uniform in ±0.5, since it stays at "
    "chance for 50 rounds under PyTorch's own. Smoothing is by 0.1, mixup's alpha is 1, and "
    "*dp-noise* adds noise of standard deviation 1e-4 to each weight and clips nothing. Attackers "
    "know the defense's parameters.",
    f"`soft-label` with `analytic` attacks {EXACT['mlp', 'B = 1'][1]} clients of `mlp` at B = 1, "
    f"{EXACT['mlp', 'B = 16'][1]} at B = 16 and {EXACT['mlp', 'epoch'][1]} of epochs; with `r-gap` "
    f"{EXACT['lenet', 'B = 1'][1]} of `lenet` at B = 1. No exact attack applies to its other rows: "
    "of 16 examples one linear layer with 10 classes shows too little, and several steps are "
    "repeated through linear layers only. An epoch comes back as a whole or not at all: three "
    "updates a row. `label-mass` counts the classes of every row, on "
    f"{COUNTED} clients.",
    f"Shares over the examples of {SEEDS} seeds (`--quick`: 1): labels within 0.01, images of 20 "
    "and 50 dB or more; *false*: vouched for and wrong. *Mass off*: total variation between the "
    "class mass counted and the client's, beside (*unseen*) that of who knows the test data's "
    "classes alone, dotted in the figure. *Accuracy* is the server's after the round, on 500 test "
    "images; the round's updates start from the weights before it. Intervals are of 95 %: "
    "Student's t over the seeds, for shares of examples not narrower than Wilson's over the "
    "examples.",
)
SHARES = {
    "labels": "labels_right",
    "images ≥ 20 dB": "images_recognisable",
    "images ≥ 50 dB": "images_identical",
}
DRAWN = ("labels", "images ≥ 50 dB", "mass off", "accuracy")


@dataclass(frozen=True)
class Cell:
    """A combination of the table; names of `INITS`, `TRAININGS` and `DEFENSES`."""

    network: str
    training: str
    defense: str

    @property
    def attack(self) -> str:
        """What attacks it, in words."""
        image, _ = EXACT.get((self.network, self.training), (None, 0))
        return f"soft-label + {image}" if image else "label-mass"

    def values(self, rounds: Sequence[int]) -> dict[str, Any]:
        """Return what of the scenario is this cell's own; the first attack counts classes."""
        attacks: list[dict[str, Any]] = [{"label": "label-mass", "clients": [*range(COUNTED)]}]
        if (self.network, self.training) in EXACT:
            image, clients = EXACT[self.network, self.training]
            exact = {"label": "soft-label", "image": image, "clients": [*range(clients)]}
            attacks.append(exact)
        return {
            "model": {"name": self.network, "init": INITS[self.network]},
            "client": TRAININGS[self.training],
            "data.examples_per_client": 16 if self.training == "epoch" else None,
            "defense": DEFENSES[self.defense],
            "attack": [one | {"attacker": "aware", "rounds": [*rounds]} for one in attacks],
        }


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Run the sweep, then reduce it: one row for each cell and round."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    defenses = QUICK_DEFENSES if quick else DEFENSES
    cells = [Cell(*names) for names in itertools.product(INITS, TRAININGS, defenses)]
    grid = grid_of(cells, rounds, seed=seed, seeds=1 if quick else SEEDS)
    with tempfile.TemporaryDirectory() as folder:
        run_sweep(grid, Path(folder) / "sweep")
        compared = Comparison.of_sweep(Path(folder) / "sweep")
    for run in compared.runs:
        if not run.is_finished:
            raise RuntimeError(f"{run.name} of {cells[run.cell]} failed: {run.sentence}")
    for number, cell in enumerate(cells):
        for at in rounds:
            yield _row(compared, number, cell, at)


def grid_of(cells: Sequence[Cell], rounds: Sequence[int], *, seed: int, seeds: int) -> Grid:
    """Return the sweep whose cells are those of the table, in that order."""
    base = {
        "name": "rounds",
        "seed": seed,
        "rounds": max(rounds),
        "images": 0,
        "data": {"name": "mnist-5k", "clients": CLIENTS, "test_examples": 500},
    }
    own = [cell.values(rounds) for cell in cells]
    axes = [Axis(key, tuple(values[key] for values in own)) for key in own[0]]
    return Grid.of(Scenario.parse(base), axes, zipped=True, seeds=seeds)


def _row(compared: Comparison, number: int, cell: Cell, at: int) -> dict[str, object]:
    def found(attack: int | None, measure: str) -> Spread | None:
        return compared.curve(number, attack, measure).get(at)

    false = found(1, "false_claims")
    chance = found(0, "mass_tv_chance")
    return {
        "network": cell.network,
        "batch": cell.training,
        "defense": cell.defense,
        "round": at,
        "attack": cell.attack,
        **{title: _shown(found(1, measure)) for title, measure in SHARES.items()},
        "false": "–" if false is None else round(false.mean * false.runs),
        "mass off": _shown(found(0, "mass_tv")),
        "unseen": "–" if chance is None else f"{chance.mean:.2f}",
        "accuracy": _shown(found(None, "accuracy")),
    }


def _shown(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    if spread.low is None or spread.high is None:
        return f"{spread.mean:.2f}"
    return f"{spread.mean:.2f} [{spread.low:.2f}, {spread.high:.2f}]"


def _read(shown: object) -> tuple[float, float, float] | None:
    """Return the mean and the ends that `_shown` wrote; None where there is no number."""
    numbers = [float(part.strip("[],")) for part in str(shown).split() if part != "–"]
    if not numbers:
        return None
    mean, *ends = numbers
    low, high = ends or (mean, mean)
    return mean, low, high


def figure(found: Sequence[dict[str, Any]]) -> Figure:
    """Draw each number over the rounds: a column for each network and batch, a line a defense."""
    columns = list(dict.fromkeys((row["network"], row["batch"]) for row in found))
    drawing = Figure(figsize=(2.3 * len(columns), 1.9 * len(DRAWN)), layout="constrained")
    panels = drawing.subplots(len(DRAWN), len(columns), sharex=True, sharey=True, squeeze=False)
    for (line, measure), (column, key) in itertools.product(enumerate(DRAWN), enumerate(columns)):
        some = [row for row in found if (row["network"], row["batch"]) == key]
        _draw_panel(panels[line, column], some, measure)
        panels[0, column].set_title(", ".join(key), fontsize=9)
        panels[line, 0].set_ylabel(measure)
        panels[-1, column].set_xlabel("round")
    drawing.legend(*panels[-1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return drawing


def _draw_panel(axes: Axes, found: Sequence[dict[str, Any]], measure: str) -> None:
    """Draw a number of one network and batch; lines are moved aside, as many coincide."""
    rounds = sorted({row["round"] for row in found})
    share_axis(axes)
    axes.set_xscale("log")
    axes.set_xticks(rounds, [str(at) for at in rounds])
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.25)
    for index, defense in enumerate(dict.fromkeys(row["defense"] for row in found)):
        own = [row for row in found if row["defense"] == defense]
        read = [(row["round"] * 1.05 ** (index - 1.5), _read(row[measure])) for row in own]
        known = [(at, *numbers) for at, numbers in read if numbers]
        if not known:
            continue
        plot(axes, index, [(at, mean) for at, mean, *_ in known], defense)
        at, _, low, high = zip(*known, strict=True)
        axes.vlines(at, low, high, color=axes.lines[-1].get_color(), linewidth=1, alpha=0.6)
    if measure == "mass off":
        guesses = [float(row["unseen"]) for row in found if row["defense"] == found[0]["defense"]]
        axes.plot(rounds, guesses, color=MUTED, linewidth=1, linestyle=":")
    if not axes.lines:
        axes.text(0.5, 0.5, "no exact\nattack applies", transform=axes.transAxes, ha="center")
