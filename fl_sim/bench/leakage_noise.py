"""What one example a client and round leaks under clipping and Gaussian noise."""

from __future__ import annotations

from collections.abc import Iterator

from fl_sim.bench.leakage import DRAWN, MIXUP, SETTING, measured
from fl_sim.bench.victims import INIT, initial_weights

TITLE = (
    "What updates leak under clipping and noise (norm 10 doesn't bind, 0.5 does): "
    f"{SETTING}, `fcn4`, lr 0.1"
)
NOTES = (initial_weights("fcn4"),)
MULTIPLIERS = {10.0: (1e-6, 1e-5, 1e-4, 1e-3), 0.5: (0.0, 1e-5, 1e-4)}
"""Clipping norm -> noise multipliers."""


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Run a scenario for each row."""
    model = {"name": "fcn4", "init": INIT["fcn4"]}
    scenario = {"rounds": 1 if quick else 10, "model": model, "client": {"lr": 0.1}}
    labels = {"none": (), "smoothing U(0, 0.5)": DRAWN, "mixup": MIXUP}
    for norm, multipliers in MULTIPLIERS.items():
        for multiplier in multipliers[: 2 if quick else None]:
            stage = {"name": "dp-noise", "clipping_norm": norm, "noise_multiplier": multiplier}
            for attacker in ("unaware", "aware"):
                described = f"noise multiplier {multiplier:g}, norm {norm:g}, {attacker}"
                for augmentation, defense in labels.items():
                    yield measured(
                        described,
                        augmentation,
                        [*defense, stage],
                        scenario,
                        attacker=attacker,
                        seed=seed,
                    )
