"""What gradient matching reaches at equal iterations from equal starts, beside other programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from attacks import ImageAttack, Reconstruction
from attacks.images.dlg import DLG
from attacks.images.inverting_gradients import InvertingGradients
from attacks.images.r_gap import RGAP
from attacks.images.relu_fit import ReLUFit
from attacks.labels.soft_label import SoftLabelRecovery
from fl_sim.bench.breaching_loop import breaching_search, has_breaching
from fl_sim.bench.matching import (
    FOUND_NOTE,
    SMOOTH,
    Victim,
    difference,
    known,
    psnrs,
    score_columns,
    seeded,
    together,
    victims_of,
)
from fl_sim.bench.matching_restarts import MATCHED, best_by_start
from fl_sim.bench.plain_loop import plain_search
from fl_sim.bench.victims import initial_weights

TITLE = "How good images by gradient matching are at equal iterations, beside other programs"
NOTES = (
    "Photographs of 32×32 pixels with smoothed labels, which are given; ten classes, the last "
    "layer without a bias, the float32 gradient of one example, no noise, untrained networks.",
    "`inverting-gradients` (IG), total variation 1e-4, by a plain loop, by breaching 0.1.2 where "
    "it is installed beside fl-sim, and by fl-sim: the same start for each image, the same number "
    "of iterations, far fewer than the papers' (4,800 and 24,000). `difference` is the mean of "
    "PSNR minus the plain loop's, paired by image, with its 95 % interval (Student's t).",
    "DLG, in float32, takes starts one after another, as many as the row says at most, until the "
    f"gradient is matched to {MATCHED:g} of its size, which is the attack's own measure; of all "
    "starts the one that matches it best counts. `iterations` are of a start; `evaluations` those "
    "of gradients for an image, all starts together, in the mean.",
    "`r-gap` and `relu-fit` are the exact attacks on these networks; they start from the label and "
    "the feature that `soft-label` recovers, not from the given label, and their seconds are of "
    "both.",
    FOUND_NOTE,
    initial_weights("lenet", "convnet"),
)


@dataclass(frozen=True)
class Budget:
    """What a network's rows may cost.

    Args:
        ig: iterations of IG.
        dlg: iterations of a start of DLG.
        starts: most of DLG.
    """

    ig: int
    dlg: int
    starts: int


BUDGETS = {"convnet": Budget(150, 150, 10), "lenet": Budget(150, 600, 2)}


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure, and yield one row for each network and way.

    Args:
        quick: one image and few iterations, of `lenet` alone.
        seed: of weights, images and labels; starts are the same for all.
    """
    for network, budget in {"lenet": Budget(12, 12, 2)}.items() if quick else BUDGETS.items():
        victims = victims_of(network, ("label-smoothing",), 1 if quick else 20, seed)
        yield from _network_rows(network, victims, budget)


def _network_rows(
    network: str, victims: Sequence[Victim], budget: Budget
) -> Iterator[dict[str, object]]:
    """Attack all victims each way, the plain loop first."""
    truths = [victim.images for victim in victims]
    base: list[float] | None = None
    for way, (run, iterations) in _ways(network, victims, budget).items():
        started = time.process_time()
        found = run()
        seconds = time.process_time() - started
        scores = psnrs(found, truths)
        evaluations = [one.gradient_evaluations for one in found]
        counted = [number for number in evaluations if number is not None]
        yield {
            "network": network,
            "way": way,
            "images": len(found),
            "iterations": iterations,
            "evaluations": round(sum(counted) / len(counted)) if counted else "–",
            **score_columns(found, truths),
            "difference": "" if base is None else difference(scores, base),
            "CPU seconds": round(seconds, 1),
        }
        base = scores if base is None else base


def _ways(
    network: str, victims: Sequence[Victim], budget: Budget
) -> dict[str, tuple[Callable[[], list[Reconstruction]], int | str]]:
    """Return what attacks all victims, by name, and its iterations."""
    leaks, labels = [v.leak for v in victims], [known(v.labels) for v in victims]
    ig = InvertingGradients(iterations=budget.ig, total_variation=SMOOTH)
    exact: ImageAttack = RGAP() if network == "lenet" else ReLUFit()
    starts = [
        torch.rand(1, *leak.input_shape, generator=seeded(number), dtype=torch.float64).float()
        for number, leak in enumerate(leaks)
    ]

    def plain() -> list[Reconstruction]:
        return [
            plain_search(victim.leak, victim.labels, budget.ig, SMOOTH, start)
            for victim, start in zip(victims, starts, strict=True)
        ]

    def breaching() -> list[Reconstruction]:
        return [
            breaching_search(victim.leak, victim.labels, budget.ig, SMOOTH, start)[0]
            for victim, start in zip(victims, starts, strict=True)
        ]

    def exactly() -> list[Reconstruction]:
        return [
            exact(leak, SoftLabelRecovery()(leak, generator=seeded(0)), generator=seeded(0))
            for leak in leaks
        ]

    def in_turn() -> list[Reconstruction]:
        attack = DLG(iterations=budget.dlg, restarts=1, patience=100, precision="float32")
        *_, found = best_by_start(attack, victims, budget.starts)
        return found

    others = {"IG, breaching": (breaching, budget.ig)} if has_breaching() else {}
    name = "r-gap" if network == "lenet" else "relu-fit"
    return {
        "IG, plain loop": (plain, budget.ig),
        **others,
        "IG": (lambda: together(ig, leaks, labels), budget.ig),
        f"DLG, up to {budget.starts} starts": (in_turn, budget.dlg),
        name: (exactly, "–"),
    }
