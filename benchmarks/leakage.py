"""What one example a client and round leaks: labels and images, by network, defense and rate."""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from fl_sim.bench.table import write_table
from fl_sim.records import read_lines
from fl_sim.scenario import Scenario
from fl_sim.simulation import run

SMOOTHING = [{"name": "label-smoothing", "smoothing": 0.1}]
DRAWN = [{"name": "label-smoothing", "smoothing": [0.0, 0.5]}]
MIXUP = [{"name": "mixup", "alpha": 1.0}]
COMMAND = "python -m benchmarks leakage"


def main() -> str:
    """Run all scenarios, and return the tables."""
    exact = [
        _row(f"{model}, {rounds} rounds, lr {lr:g}", name, defense, model, rounds=rounds, lr=lr)
        for model, rounds, lr in (
            ("fcn4", 10, 0.1),
            ("fcn4", 10, 0.01),
            ("fcn4", 40, 0.1),
            ("fcn4", 40, 0.01),
            ("mlp", 10, 0.1),
            ("mlp", 40, 0.1),
        )
        for name, defense in (("smoothing 0.1", SMOOTHING), ("mixup", MIXUP))
    ]
    exact += [
        _row(
            f"{model}{', bias' if bias else ''}, photos, 5 rounds, lr 0.1",
            name,
            defense,
            model,
            rounds=5,
            data="photos",
            bias=bias,
        )
        for model in ("lenet", "resnet18")
        for bias in (False, True)
        for name, defense in (("smoothing U(0, 0.5)", DRAWN), ("mixup", MIXUP))
    ]
    noisy = [
        _row(
            f"noise multiplier {multiplier:g}, norm {norm:g}, {attacker}",
            name,
            [
                *defense,
                {"name": "dp-noise", "clipping_norm": norm, "noise_multiplier": multiplier},
            ],
            "fcn4",
            attacker=attacker,
        )
        for norm, multipliers in ((10.0, (1e-6, 1e-5, 1e-4, 1e-3)), (0.5, (0.0, 1e-5, 1e-4)))
        for multiplier in multipliers
        for attacker in ("unaware", "aware")
        for name, defense in (("none", []), ("smoothing U(0, 0.5)", DRAWN), ("mixup", MIXUP))
    ]
    setting = "10 clients, one example each a round, no bias unless said, float32 weights, `local`"
    return "\n".join(
        [
            write_table(
                "leakage", f"What updates leak without noise: {setting}", COMMAND, 0, exact
            ),
            write_table(
                "leakage_noise",
                f"What updates leak under clipping and noise (norm 10 doesn't bind, 0.5 does): "
                f"{setting}, `fcn4`, lr 0.1",
                COMMAND,
                0,
                noisy,
            ),
        ]
    )


def _row(
    described: str,
    augmentation: str,
    defense: list[dict[str, Any]],
    model: str,
    *,
    rounds: int = 10,
    lr: float = 0.1,
    data: str = "mnist-5k",
    bias: bool = False,
    attacker: str = "unaware",
) -> dict[str, Any]:
    image = "analytic" if model in ("fcn4", "mlp") else None
    scenario = Scenario.parse(
        {
            "rounds": rounds,
            "data": {"name": data, "test_examples": 300},
            "model": {"name": model, "bias": bias},
            "client": {"lr": lr},
            "defense": defense,
            "attack": [{"label": "soft-label", "image": image, "attacker": attacker}],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        run(scenario, Path(folder) / "run")
        records = read_lines(Path(folder) / "run" / "leakage.jsonl")
    return {"setting": described, "augmentation": augmentation} | _measures(records)


def _measures(records: list[dict[str, Any]]) -> dict[str, Any]:
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


def _error(record: dict[str, Any]) -> float:
    error = record["label_linf"]
    return math.inf if error is None else float(error)


def _shown(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else "none"


def _below(value: float | None, bound: float) -> bool:
    return value is not None and value < bound


def _largest(records: list[dict[str, Any]], key: str) -> str:
    values = [r[key] for r in records if r[key] is not None]
    return f"{max(values):.1e}" if values else "–"
