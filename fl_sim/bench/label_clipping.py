"""Label recovery where the gradient was multiplied by an unknown factor, as clipping does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from attacks import Status
from attacks.labels.soft_label import SoftLabelRecovery
from fl_sim.bench.labels import DATA, Cell, head_leaks
from fl_sim.bench.victims import AUGMENTATIONS, INIT, initial_weights
from fl_sim.seeds import numpy_generator

TITLE = "Soft labels from a clipped gradient: the factor c isn't told, nor the augmentation"
NOTES = (
    "c is drawn log-uniformly from each interval; the gradient is float32, without a bias.",
    initial_weights("fcn4", "lenet"),
)
FACTORS = ((1.0, 1.0), (0.5, 1.0), (0.1, 0.5), (0.01, 0.1))


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure; one row for each network, K, augmentation and range of factors."""
    number = 20 if quick else 250
    for network in ("fcn4", "lenet"):
        for classes in DATA:
            for augmentation in AUGMENTATIONS:
                cell = Cell(network, INIT[network], classes, False, False, augmentation)
                leaks, labels = head_leaks(cell.model(seed)[0], cell, number, seed)
                for low, high in FACTORS:
                    draws = numpy_generator(seed, "clipping", str(low))
                    factors = np.exp(draws.uniform(np.log(low), np.log(high), number))
                    yield {
                        "network": network,
                        "K": classes,
                        "augmentation": augmentation,
                        "c": f"{low:g}–{high:g}" if low < high else f"{low:g}",
                        **_measure(leaks, labels, factors),
                    }


def _measure(leaks: Sequence[Any], labels: torch.Tensor, factors: Any) -> dict[str, object]:
    attack = SoftLabelRecovery()
    recovered, false, within, scale_errors = 0, 0, 0, []
    for leak, label, factor in zip(leaks, labels, factors, strict=True):
        gradients = {key: value * np.float32(factor) for key, value in leak.gradients.items()}
        clipped = dataclasses.replace(leak, gradients=gradients)
        answer = attack(clipped, generator=torch.Generator())
        is_recovered = answer.status is Status.RECOVERED
        recovered += is_recovered
        error = np.inf
        if answer.labels is not None and answer.labels.isfinite().all():
            error = float((answer.labels[0] - label).abs().max())
        within += error < 1e-3
        false += is_recovered and error >= 1e-2
        if is_recovered and answer.gradient_scale is not None:
            scale_errors.append(abs(answer.gradient_scale / factor - 1))
    return {
        "gradients": len(leaks),
        "RECOVERED": recovered,
        "L∞ < 1e-3": within,
        "false": false,
        "largest error of c": f"{max(scale_errors):.1e}" if scale_errors else "–",
    }


def figure(found: Sequence[dict[str, Any]]) -> Figure:
    """Draw the share that is recovered by the range of c, a line for each network and K."""
    drawing = Figure(figsize=(5, 3.2), layout="constrained")
    axis = drawing.subplots()
    ranges = list(dict.fromkeys(row["c"] for row in found))
    for network, classes in dict.fromkeys((row["network"], row["K"]) for row in found):
        shares = []
        for c in ranges:
            some = [r for r in found if (r["network"], r["K"], r["c"]) == (network, classes, c)]
            shares.append(sum(r["RECOVERED"] for r in some) / sum(r["gradients"] for r in some))
        axis.plot(ranges, shares, "o-", label=f"{network}, K = {classes}")
    axis.set_xlabel("c")
    axis.set_ylabel("share RECOVERED")
    axis.set_ylim(0, 1.05)
    axis.legend(fontsize=7)
    return drawing
