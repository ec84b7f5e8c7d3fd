"""How far several local steps can be repeated: by examples, steps, learning rate and width.

Each line changes one number of a client of 784-512-10 that takes five full-batch steps on eight
digits at 0.1, or that goes once through its digits in batches of 4. Beside what is found stands
what decides: the share of (example, unit) pairs whose mask isn't the same at all steps, measured on
the client, which no attacker sees.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fl_sim.bench.image_steps import FIRST_SEED, Cell, answers, changed_masks, trained_client
from fl_sim.bench.scores import score_batch, shown_median
from fl_sim.report.drawing import MUTED, plot, share_axis

TITLE = "Several local steps: where they can be repeated, and where that ends"
NOTES = (
    "One number at a time around a client of 784-512-10 without biases that takes five full-batch "
    "steps on 8 MNIST digits at 0.1 (“epoch”: once through its digits in shuffled batches of 4), "
    "its labels smoothed, float32 SGD. `soft-label` and `analytic`, blind. “found”: share of the "
    "examples whose label is called RECOVERED; “false”: claims that aren't so.",
    "“masks that change”: share of the pairs of an example and a hidden unit whose mask isn't the "
    "same at all steps; “examples/width”: what the search for examples turns on beside them.",
    "Three seeds from 200 on; one, where the first takes more than 15 seconds.",
)
SEEDS, LONG_SECONDS = 3, 15.0
"""Seeds of a cell; an update that takes longer is measured with one."""
FULL, EPOCH = Cell(examples=8, batch=8, epochs=5), Cell(examples=8)


@dataclass(frozen=True)
class Line:
    """One number that changes, around one client.

    Args:
        name: of the panel.
        base: the client.
        field: of the cell; "examples" changes a full batch too, "width" the hidden layer.
        values: that it takes.
    """

    name: str
    base: Cell
    field: str
    values: tuple[float, ...]

    def cell(self, value: float) -> Cell:
        """Return the client at a value."""
        if self.field == "width":
            return replace(self.base, widths=(int(value),))
        if self.field == "lr":
            return replace(self.base, lr=value)
        if self.field == "steps":
            return replace(self.base, epochs=int(value))
        batch = int(value) if self.base.batch == self.base.examples else self.base.batch
        return replace(self.base, examples=int(value), batch=batch)


LINES = (
    Line("examples", FULL, "examples", (1, 4, 8, 16, 32, 64)),
    Line("examples, epoch", EPOCH, "examples", (4, 8, 16, 32, 64)),
    Line("steps", FULL, "steps", (2, 5, 10, 20, 50, 100)),
    Line("steps at 0.01", replace(FULL, lr=0.01), "steps", (5, 20, 50, 100)),
    Line("lr", FULL, "lr", (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)),
    Line("width", FULL, "width", (64, 128, 256, 512, 1024)),
)


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each line and value."""
    for line in LINES[:1] if quick else LINES:
        for value in line.values[:2] if quick else line.values:
            yield _row(line, value, seed, 1 if quick else SEEDS)


def _row(line: Line, value: float, seed: int, seeds: int) -> dict[str, Any]:
    cell = line.cell(value)
    seconds, masks, psnr, reasons = [], [], [], []
    found = false = 0
    for own in range(FIRST_SEED + seed, FIRST_SEED + seed + seeds):
        client = trained_client(cell, own)
        started = time.process_time()
        labels, images = answers(client.leak, own)
        seconds.append(time.process_time() - started)
        scores = score_batch(labels, images, client.images, client.labels)
        found, false = found + scores.found, false + scores.false
        masks.append(changed_masks(client))
        psnr.append(scores.psnr)
        reasons.append(labels.reason or "")
        if seconds[0] > LONG_SECONDS:
            break
    return {
        "line": line.name,
        "value": value,
        "seeds": len(seconds),
        "found": round(found / (cell.examples * len(seconds)), 3),
        "false": false,
        "masks that change": round(sum(masks) / len(masks), 4),
        "examples/width": round(cell.examples / cell.widths[0], 4),
        "psnr_median_db": round(shown_median(torch.cat(psnr)), 1),
        "seconds": f"{sorted(seconds)[len(seconds) // 2]:.2g}",
        "why not all": next((reason for reason in reasons if reason), "–"),
    }


def figure(found: Sequence[dict[str, Any]]) -> Figure:
    """Draw what is found, the masks that change, and the seconds, over each number."""
    names = list(dict.fromkeys(row["line"] for row in found))
    drawing = Figure(figsize=(2.3 * len(names), 4.2), layout="constrained")
    panels = drawing.subplots(2, len(names), sharex="col", sharey="row", squeeze=False)
    for column, name in enumerate(names):
        own = [row for row in found if row["line"] == name]
        _draw_shares(panels[0, column], own)
        panels[0, column].set_title(name, fontsize=9)
        lower = panels[1, column]
        plot(lower, 0, [(row["value"], float(row["seconds"])) for row in own], "seconds")
        lower.set_yscale("log")
        lower.set_xlabel(name.partition(",")[0].partition(" ")[0])
    panels[0, 0].set_ylabel("share")
    panels[1, 0].set_ylabel("seconds")
    drawing.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return drawing


def _draw_shares(axes: Axes, own: Sequence[dict[str, Any]]) -> None:
    share_axis(axes)
    axes.set_xscale("log")
    values = [row["value"] for row in own]
    axes.set_xticks(values, [f"{value:g}" for value in values], fontsize=7)
    axes.minorticks_off()
    plot(axes, 0, [(row["value"], row["found"]) for row in own], "examples found")
    masks = [row["masks that change"] for row in own]
    axes.plot(values, masks, color=MUTED, linestyle="--", marker="o", label="masks that change")
