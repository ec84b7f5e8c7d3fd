"""Claims of differential privacy: what is refused, and what ours claim."""

from __future__ import annotations

import math
from typing import Any

import pytest

from defenses import DEFENSES, Defense, LocalPlan, Privacy
from defenses.dp_noise import DPNoise

PLAN = LocalPlan(local_steps=2, batch_size=3, share_size=40)
OPTIONS: dict[str, dict[str, Any]] = {
    "dp-noise": {"clipping_norm": 0.5, "noise_multiplier": 3.0},
    "dp-sgd": {"clipping_norm": 0.1, "noise_multiplier": 1.0},
    "gradient-clipping": {"clipping_norm": 0.5},
}


def test_a_defense_claims_nothing_unless_it_says_so() -> None:
    claims = {
        name: DEFENSES.build(name, **OPTIONS.get(name, {})).privacy(PLAN) for name in DEFENSES
    }
    assert Defense().privacy(PLAN) is None
    assert [name for name, claim in claims.items() if claim is not None] == ["dp-sgd", "dp-noise"]


def test_two_clipped_updates_differ_by_twice_the_norm() -> None:
    claim = DPNoise(clipping_norm=0.5, noise_multiplier=3.0).privacy(PLAN)
    assert claim == Privacy(sensitivity=1.0, noise=1.5, sampling=1.0, unit="update", releases=1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sensitivity": None}, "sensitivity must be a finite number above 0, found None"),
        ({"sensitivity": 0.0}, "sensitivity must be a finite number above 0, found 0.0"),
        ({"sensitivity": math.inf}, "sensitivity must be a finite number above 0, found inf"),
        ({"noise": -0.1}, "noise must be a finite number of at least 0, found -0.1"),
        ({"noise": math.nan}, "noise must be a finite number of at least 0, found nan"),
        ({"sampling": 1.5}, r"sampling must be in \[0, 1\], found 1.5"),
        ({"sampling": -0.5}, r"sampling must be in \[0, 1\], found -0.5"),
        ({"sampling": True}, r"sampling must be in \[0, 1\], found True"),
        ({"unit": "batch"}, "unit must be 'update' or 'example', found 'batch'"),
        ({"releases": 0}, "releases must be a whole number of at least 1, found 0"),
        ({"releases": 1.5}, "releases must be a whole number of at least 1, found 1.5"),
    ],
)
def test_an_impossible_claim_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Privacy(**{"sensitivity": 1.0, "noise": 1.0} | change)
