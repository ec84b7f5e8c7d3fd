"""Every attack meets every defense: what doesn't apply says so, and nothing raises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS
from defenses import DEFENSES
from fl_sim import Scenario, run
from fl_sim.leakage.records import read_lines

Tiny = Callable[..., Scenario]
OPTIONS: dict[str, dict[str, Any]] = {
    "dp-noise": {"clipping_norm": 1.0, "noise_multiplier": 0.01},
    "dp-sgd": {"clipping_norm": 0.1, "noise_multiplier": 1.0},
    "gradient-clipping": {"clipping_norm": 0.1},
}
SHORT: dict[str, dict[str, Any]] = {
    "soft-label-pso": {"particles": 20, "iterations": 5},
    "dlg": {"iterations": 2, "restarts": 1},
    **{name: {"iterations": 2} for name in ("inverting-gradients", "gradinversion", "auto")},
    "feature-matching": {"iterations": 2},
}
"""Options that make a search short."""
QUICK = ("pruning", "precode")
"""The others take five seconds each, and run with the slow tests."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in DEFENSES]
)
def test_every_attack_meets_the_defense(name: str, tiny: Tiny, tmp_path: Path) -> None:
    plans = [
        {"label": label, "image": None, "label_options": SHORT.get(label, {})}
        for label in LABEL_ATTACKS
    ]
    plans += [
        {
            "label": "soft-label",
            "image": image,
            "image_options": SHORT.get(image, {}),
            "when": "round",
        }
        for image in IMAGE_ATTACKS
    ]
    scenario = tiny("rounds=1", "data.clients=1").with_changes(
        {
            "model": {"name": "fcn4"},
            "client.batch_size": 2 if name == "vicinal" else 1,
            "client.mode": "train" if name == "dropout" else "eval",
            "defense": [{"name": name, **OPTIONS.get(name, {})}],
            "attack": [plan | {"attacker": who} for plan in plans for who in ("unaware", "aware")],
        }
    )
    run(scenario, tmp_path / "run")
    records = read_lines(tmp_path / "run" / "leakage.jsonl")
    assert {r["label_attack"] for r in records} == set(LABEL_ATTACKS)
    assert {r["image_attack"] for r in records} == {None, *IMAGE_ATTACKS}
    failed = [
        (r["label_attack"], r["label_reason"], r["image_attack"], r["image_reason"])
        for r in records
        if "FAILED" in (r["label_status"], r["image_status"])
    ]
    assert not failed
