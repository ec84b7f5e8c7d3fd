"""How often DLG finds the image, by how many starts it may take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from attacks import Reconstruction
from attacks.images.dlg import DLG
from fl_sim.bench.matching import (
    FOUND_NOTE,
    Victim,
    known,
    misfit,
    score_columns,
    seeded,
    victims_of,
)
from fl_sim.bench.victims import initial_weights

TITLE = "How often DLG finds the image, by the number of its starts"
MATCHED = 3e-3
"""Of the gradient, relative to its size: DLG takes no further start where a start ends below it."""
STARTS = (1, 2, 5, 10)
NOTES = (
    "Photographs of 32×32 pixels, ten classes, the last layer without a bias, the label given, the "
    "float32 gradient of one example, no noise, untrained networks; DLG as it is by default: "
    f"L-BFGS in float64, at most {DLG.iterations:,} iterations a start.",
    "Starts are taken one after another, at most as many as the row says, until the gradient is "
    f"matched to {MATCHED:g} of its size, which is the attack's own measure; of all the one counts "
    "that matches it best. `misfit` is the median of what is left; `evaluations` are those of the "
    "gradient for an image, in the mean.",
    FOUND_NOTE,
    initial_weights("lenet", "convnet"),
)


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Attack every image, and yield a row for each number of starts.

    Args:
        quick: two images, two starts and few iterations, of `lenet` with smoothed labels.
        seed: of weights, images and labels.
    """
    for network in ("lenet",) if quick else ("lenet", "convnet"):
        for augmentation in ("label-smoothing",) if quick else ("label-smoothing", "mixup"):
            yield from _rows(network, augmentation, quick=quick, seed=seed)


def _rows(
    network: str, augmentation: str, *, quick: bool, seed: int
) -> Iterator[dict[str, object]]:
    victims = victims_of(network, (augmentation,), 2 if quick else 20, seed)
    attack = DLG(iterations=12, restarts=1) if quick else DLG(restarts=1)
    after = enumerate(best_by_start(attack, victims, 2 if quick else max(STARTS)), 1)
    for starts, found in after:
        if starts in STARTS:
            yield {
                "network": network,
                "augmentation": augmentation,
                "starts": starts,
                "images": len(victims),
                **score_columns(found, [victim.images for victim in victims]),
                "misfit": f"{np.median([misfit(one) for one in found]):.1g}",
                "evaluations": sum(one.gradient_evaluations or 0 for one in found) // len(found),
            }


def best_by_start(
    attack: DLG, victims: Sequence[Victim], starts: int
) -> Iterator[list[Reconstruction]]:
    """Attack by one start after another, and yield the best match of each victim after each.

    Args:
        attack: of one start.
        victims: of one network; whose gradient is matched takes no further start.
        starts: most.
    """
    best: list[Reconstruction | None] = [None] * len(victims)
    spent = [0] * len(victims)
    generators = [seeded(number) for number in range(len(victims))]
    for _ in range(starts):
        left = [n for n, one in enumerate(best) if one is None or misfit(one) > MATCHED]
        if left:
            answers = attack.together(
                [victims[n].leak for n in left],
                [known(victims[n].labels) for n in left],
                [generators[n] for n in left],
            )
            for n, one in zip(left, answers, strict=True):
                spent[n] += one.gradient_evaluations or 0
                kept = best[n]
                best[n] = one if kept is None or misfit(one) < misfit(kept) else kept
        yield [
            replace(one, gradient_evaluations=count)
            for one, count in zip(best, spent, strict=True)
            if one is not None
        ]
