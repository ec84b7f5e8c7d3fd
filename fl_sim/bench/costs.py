"""What a client's round costs, and what scoring one leak's answer costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from attacks import LabelRecovery
from fl_sim.bench.image_batches import given_labels
from fl_sim.bench.recorded import recorded
from fl_sim.bench.victims import INIT, dataset, draw_batch, initial_weights, untrained
from fl_sim.leakage.image_scores import score_image
from fl_sim.leakage.judge import Truth, pair_examples, score_labels
from fl_sim.leakage.true_features import TrueFeatures
from fl_sim.scenario import Scenario
from fl_sim.testing.leaks import leak_of

TITLE = (
    "What a client's round costs with engine `local` and no attack, and what it costs to score one "
    "leak's answer; in milliseconds, on one thread"
)
NOTES = (
    "A client's round is a round of 10 clients over 10: training, the messages both ways and its "
    "share of the aggregation; accuracy is measured on one image. Scoring pairs the rows of an "
    "answer with the examples, and compares labels, features and images (28 × 28).",
    initial_weights("fcn4", "lenet"),
)
CLIENTS = 10
ROUNDS: Sequence[tuple[str, int, int]] = (("fcn4", 1, 1), ("fcn4", 16, 1), ("lenet", 32, 10))
"""(network, batch size, local steps)."""
ERROR = 1e-3
"""Relative error of the answers that are scored, and of their pixels."""


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure; one row for each setting of a round, then for each size of an answer."""
    for network, batch, steps in ROUNDS:
        seconds = _client_rounds(network, batch, steps, 5 if quick else 100, seed)
        yield _row("a client's round", network, batch, steps, seconds)
    for batch in (1, 16):
        seconds = _scorings(batch, 20 if quick else 500, seed)
        yield _row("scoring an answer", "fcn4", batch, 1, seconds)


def _row(
    what: str, network: str, batch: int, steps: int, seconds: Sequence[float]
) -> dict[str, object]:
    return {
        "what": what,
        "network": network,
        "batch": batch,
        "local steps": steps,
        "repetitions": len(seconds),
        "median ms": f"{1e3 * np.median(seconds):.2f}",
        "95 % ms": f"{1e3 * np.quantile(seconds, 0.95):.2f}",
    }


def _client_rounds(network: str, batch: int, steps: int, rounds: int, seed: int) -> list[float]:
    """Run once; return the seconds of each round but the first, over the clients."""
    scenario = Scenario.parse(
        {
            "seed": seed,
            "rounds": rounds + 1,
            "data": {"clients": CLIENTS, "test_examples": 1},
            "model": {"name": network, "init": INIT[network]},
            "client": {"batch_size": batch, "local_steps": steps},
        }
    )
    return [line["seconds"] / CLIENTS for line in recorded(scenario).rounds if line["round"] > 1]


def _scorings(batch: int, repetitions: int, seed: int) -> list[float]:
    """Score one answer again and again, after once that isn't counted; return the seconds."""
    data = dataset("mnist-5k")
    truth = Truth(*draw_batch(data, batch, "mixup+label-smoothing", seed=seed))
    leak = leak_of(untrained("fcn4", data, seed=seed), truth.images, truth.labels)
    generator = torch.Generator().manual_seed(seed)
    recovery = given_labels(leak, truth, ERROR, generator)
    noise = torch.randn(truth.images.shape, generator=generator)
    images = (truth.images + ERROR * noise).clamp(0, 1)

    features = TrueFeatures(leak)

    def score(recovery: LabelRecovery, images: Tensor) -> None:
        pairs = pair_examples(recovery, truth, batch, images)
        score_labels(recovery, truth, pairs, features)
        for image, true in zip(images, truth.images[pairs], strict=True):
            score_image(image, true)

    seconds = []
    for _ in range(repetitions + 1):
        started = time.perf_counter()
        score(recovery, images)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]
