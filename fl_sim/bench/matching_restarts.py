"""How often DLG finds the image, by how many starts it may take."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from attacks.images.dlg import DLG
from fl_sim.bench.matching import (
    FOUND_NOTE,
    known,
    misfit,
    psnrs,
    score_columns,
    seeded,
    victims_of,
)
from fl_sim.bench.victims import initial_weights

TITLE = "How often DLG finds the image, by the number of its starts"
STARTS = (1, 2, 5, 10)
NOTES = (
    "Photographs of 32×32 pixels, ten classes, the last layer without a bias, the label given, the "
    "float32 gradient of one example, no noise, untrained networks; DLG as it is by default: "
    "L-BFGS in float64, at most 1,200 iterations a start.",
    "Of all starts that one counts whose gradient is nearest to what was sent, by the attack's own "
    "measure. `best 30 dB` is how many images any of the starts has above 30 dB, which needs the "
    "truth to pick: the choice costs the difference. `misfit` is the median of the gradient's "
    "distance, relative to its size; `evaluations` are those of the gradient for an image.",
    FOUND_NOTE,
    initial_weights("lenet", "convnet"),
)


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Attack every image from all starts, and yield a row for each number of starts.

    Args:
        quick: two images, two starts and few iterations, of `lenet` with smoothed labels.
        seed: of weights, images and labels.
    """
    for network in ("lenet",) if quick else ("convnet", "lenet"):
        for augmentation in ("label-smoothing",) if quick else ("label-smoothing", "mixup"):
            yield from _rows(network, augmentation, quick=quick, seed=seed)


def _rows(
    network: str, augmentation: str, *, quick: bool, seed: int
) -> Iterator[dict[str, object]]:
    victims = victims_of(network, (augmentation,), 2 if quick else 20, seed)
    starts = [number for number in STARTS if number <= 2] if quick else STARTS
    attack = DLG(iterations=12, restarts=1) if quick else DLG(restarts=1)
    every = attack.together(
        [victim.leak for victim in victims] * starts[-1],
        [known(victim.labels) for victim in victims] * starts[-1],
        [seeded(number) for number in range(len(victims) * starts[-1])],
    )
    count, truths = len(victims), [victim.images for victim in victims]
    by_start = np.array(psnrs(every, truths * starts[-1])).reshape(starts[-1], -1)
    for number in starts:
        found = [min(every[at : number * count : count], key=misfit) for at in range(count)]
        above = (by_start[:number].max(axis=0) > 30).sum()
        yield {
            "network": network,
            "augmentation": augmentation,
            "starts": number,
            "images": count,
            **score_columns(found, truths),
            "best 30 dB": f"{above} of {count}",
            "misfit": f"{np.median([misfit(one) for one in found]):.1g}",
            "evaluations": sum(one.gradient_evaluations or 0 for one in every[: number * count])
            // count,
        }
