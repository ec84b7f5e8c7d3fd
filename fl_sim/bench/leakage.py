"""What one example a client and round leaks: labels and images, by network and rate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from fl_sim.bench.recorded import recorded
from fl_sim.bench.victims import INIT, initial_weights
from fl_sim.leakage.leaks import Record
from fl_sim.scenario import Scenario

Stage = dict[str, Any]
SETTING = "10 clients, one example each a round, no bias unless said, float32 weights, `local`"
TITLE = f"What updates leak without noise: {SETTING}"
NOTES = (initial_weights("fcn4", "mlp", "lenet", "resnet18"),)
SMOOTHING: Sequence[Stage] = ({"name": "label-smoothing", "smoothing": 0.1},)
DRAWN: Sequence[Stage] = ({"name": "label-smoothing", "smoothing": [0.0, 0.5]},)
MIXUP: Sequence[Stage] = ({"name": "mixup", "alpha": 1.0},)
TRAINED = (
    ("fcn4", 10, 0.1),
    ("fcn4", 10, 0.01),
    ("fcn4", 40, 0.1),
    ("fcn4", 40, 0.01),
    ("mlp", 10, 0.1),
    ("mlp", 40, 0.1),
)
"""(network, rounds, learning rate)."""


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Run a scenario for each row: fully connected networks, then convolutional ones."""
    for model, rounds, lr in TRAINED[: 1 if quick else None]:
        for augmentation, defense in (("smoothing 0.1", SMOOTHING), ("mixup", MIXUP)):
            values = {"rounds": rounds, "client": {"lr": lr}, "model": _model(model)}
            described = f"{model}, {rounds} rounds, lr {lr:g}"
            yield measured(described, augmentation, defense, values, seed=seed)
    photos = {"rounds": 1 if quick else 5, "data": {"name": "photos"}}
    for model in ("lenet",) if quick else ("lenet", "resnet18"):
        for bias in (False, True):
            for augmentation, defense in (("smoothing U(0, 0.5)", DRAWN), ("mixup", MIXUP)):
                values = photos | {"model": _model(model, bias=bias)}
                named = f"{model}{', bias' if bias else ''}"
                described = f"{named}, photos, {photos['rounds']} rounds, lr 0.1"
                yield measured(described, augmentation, defense, values, seed=seed)


def measured(
    described: str,
    augmentation: str,
    defense: Sequence[Stage],
    values: dict[str, Any],
    *,
    attacker: str = "unaware",
    seed: int,
) -> dict[str, object]:
    """Run a scenario and return its row.

    Args:
        described: the setting, in words.
        augmentation: of the labels, in words.
        defense: the scenario's stages.
        values: the scenario's other keys, but for the attack; `model` among them.
        attacker: "unaware" or "aware".
        seed: of the scenario.
    """
    image = "analytic" if values["model"]["name"] in ("fcn4", "mlp") else None
    attack = {"label": "soft-label", "image": image, "attacker": attacker}
    scenario = Scenario.parse(
        {
            **values,
            "seed": seed,
            "data": {"test_examples": 300} | values.get("data", {}),
            "defense": list(defense),
            "attack": [attack],
        }
    )
    records = recorded(scenario).records
    return {"setting": described, "augmentation": augmentation} | _measures(records)


def _model(name: str, *, bias: bool = False) -> dict[str, Any]:
    return {"name": name, "bias": bias, "init": INIT[name]}


def _measures(records: list[Record]) -> dict[str, Any]:
    """Reduce the records to the table's columns; a missing number counts as a failure."""
    claimed = [r for r in records if r["label_status"] == "RECOVERED"]
    images = [r for r in records if r["image_status"] == "RECOVERED"]
    psnr = [r["psnr_db"] or 0.0 for r in records if r["image_attack"]]
    return {
        "records": len(records),
        "recovered": len(claimed),
        "L∞ < 1e-3": sum(_below(r["label_linf"], 1e-3) for r in records),
        "median L∞": _shown(statistics.median(_error(r) for r in records)),
        "false accepts": sum(not _below(r["label_linf"], 1e-2) for r in claimed),
        "right type": sum(r["augmentation"] == r["true_augmentation"] for r in records),
        "max error of ε": _largest(records, "smoothing_error"),
        "of mixing": _largest(records, "mixing_error"),
        "images recovered": len(images) if psnr else "–",
        "of these under 50 dB": sum(r["psnr_db"] < 50 for r in images) if psnr else "–",
        "median PSNR, dB": f"{statistics.median(psnr):.0f}" if psnr else "–",
    }


def _error(record: Record) -> float:
    error = record["label_linf"]
    return math.inf if error is None else float(error)


def _shown(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else "none"


def _below(value: float | None, bound: float) -> bool:
    return value is not None and value < bound


def _largest(records: list[Record], key: str) -> str:
    values = [r[key] for r in records if r[key] is not None]
    return f"{max(values):.1e}" if values else "–"
