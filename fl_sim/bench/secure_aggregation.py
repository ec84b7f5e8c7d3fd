"""What the exact attacks recover of n clients' summed updates, B examples each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fl_sim.bench.recorded import recorded
from fl_sim.leakage.leaks import TOLERANCE, Record
from fl_sim.scenario import Scenario

SEEDS = 3
SIZES = (2, 1), (16, 1), (2, 8), (4, 4), (16, 2), (4, 8), (16, 4), (4, 16)
"""Clients n and the examples B of each."""
TITLE = "Secure aggregation: what the exact attacks recover of a sum of n clients' updates"
NOTES = (
    "`mlp` (784-512-512-10) without biases on `mnist-5k`, PyTorch's own initialisation, labels "
    "smoothed by 0.1. One round, one step, lr 0.1, float32 weights; the server sees only the "
    f"mean of all n updates. `soft-label` and `analytic`, {SEEDS} seeds. *Right* is within 0.01 of "
    "the label, beyond 20 and 50 dB of the image; *false* counts what was vouched for and wrong.",
    "The sum of n updates of one step is the update of one batch of n·B: where n·B is the same, so "
    "is what leaks, whoever holds the examples. Whose an example is, the sum doesn't say.",
    "Sums of more than 64 examples aren't measured: an attack on 128 takes minutes.",
)


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Run each size; a quick run takes the first four and one seed."""
    for clients, batch in SIZES[: 4 if quick else None]:
        seeds = range(seed, seed + (1 if quick else SEEDS))
        records = [record for each in seeds for record in _records(clients, batch, each)]
        yield _row(clients, batch, len(seeds) * clients * batch, records)


def _records(clients: int, batch: int, seed: int) -> list[Record]:
    scenario = Scenario.parse(
        {
            "seed": seed,
            "rounds": 1,
            "images": 0,
            "data": {"name": "mnist-5k", "clients": clients, "test_examples": 10},
            "model": {"name": "mlp"},
            "client": {"batch_size": batch},
            "server": {"secure_aggregation": clients},
            "defense": [{"name": "label-smoothing", "smoothing": 0.1}],
            "attack": [{"label": "soft-label", "image": "analytic"}],
        }
    )
    return recorded(scenario).records


def _row(clients: int, batch: int, examples: int, records: list[Record]) -> dict[str, Any]:
    def beyond(level: int) -> int:
        return sum((record["psnr_db"] or 0.0) > level for record in records)

    right = [(r["label_linf"] is not None and r["label_linf"] < TOLERANCE, r) for r in records]
    false = sum(
        (r["label_status"] == "RECOVERED" and not is_right)
        or (r["image_status"] == "RECOVERED" and (r["psnr_db"] or 0.0) < 50)
        for is_right, r in right
    )
    return {
        "n": clients,
        "B": batch,
        "n·B": clients * batch,
        "examples": examples,
        "labels right": sum(is_right for is_right, _ in right),
        "vouched for": sum(r["label_status"] == "RECOVERED" for _, r in right),
        "images > 20 dB": beyond(20),
        "images > 50 dB": beyond(50),
        "false": false,
    }
