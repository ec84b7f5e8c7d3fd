"""Flower's local mod, as `fl-sim audit-dp` runs it: its own noise, and what it must be told."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch

from defenses import LocalPlan, Place
from fl_sim.flower.local_dp import LocalDp
from fl_sim.privacy import audit_mechanism

NAME = "fl_sim.flower.local_dp:LocalDp"


def test_the_mod_clips_and_draws_from_the_generator() -> None:
    update = {"a": torch.full((40, 50), 2.0).double(), "b": torch.ones(3).double()}
    norm = math.sqrt(40 * 50 * 4 + 3)

    def sent(seed: int, **options: Any) -> dict[str, torch.Tensor]:
        defense = LocalDp(clipping_norm=0.5, **{"sensitivity": 1.0, "epsilon": 2.0} | options)
        return dict(defense.on_update(update, Place(), torch.Generator().manual_seed(seed)))

    level = logging.getLogger("flwr").level
    still = sent(0, epsilon=1e12)
    for name, part in update.items():
        torch.testing.assert_close(still[name], part * 0.5 / norm, atol=1e-10, rtol=0)
    first, again, other = sent(0), sent(0), sent(1)
    assert torch.equal(first["a"], again["a"])
    assert not torch.equal(first["a"], other["a"])
    std = math.sqrt(2 * math.log(1.25 / 1e-5)) / 2
    # Five standard deviations of the standard deviation of 2,000 draws.
    assert float((first["a"] - still["a"]).std()) == pytest.approx(std, rel=5 / math.sqrt(4000))
    assert LocalDp(0.5, 1.0, 2.0).privacy(LocalPlan(1, 1, 1)).noise == pytest.approx(std)
    assert logging.getLogger("flwr").level == level


@pytest.mark.parametrize(("sensitivity", "holds"), [(1.0, False), (2.0, True)])
def test_its_promise_holds_at_twice_the_clipping_norm(sensitivity: float, holds: bool) -> None:
    defense = LocalDp(clipping_norm=1.0, sensitivity=sensitivity, epsilon=10.0)
    audit = audit_mechanism(NAME, defense, draws=400)
    assert audit.holds is holds, audit.findings
    assert audit.mu > 1  # 4.1 and 2.06


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"clipping_norm": 0.0}, "clipping_norm must be a finite number above 0, found 0.0"),
        ({"sensitivity": -1.0}, "sensitivity must be a finite number above 0, found -1.0"),
        ({"epsilon": 0.0}, "epsilon must be a finite number above 0, found 0.0"),
        ({"delta": 1.0}, "delta must be a finite number above 0 and below 1, found 1.0"),
    ],
)
def test_what_is_out_of_range_is_said(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LocalDp(**{"clipping_norm": 1.0, "sensitivity": 1.0, "epsilon": 1.0} | options)
