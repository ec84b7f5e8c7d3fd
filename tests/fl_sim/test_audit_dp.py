"""`fl-sim audit-dp`: its table, its sentence and its exit status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

FlSim = Callable[..., Any]
SETTING = ("--set", "clipping_norm=1.0", "--set", "noise_multiplier=1.0", "--draws", "1000")


def test_a_kept_promise_is_status_0(fl_sim: FlSim) -> None:
    ended = fl_sim("audit-dp", "dp-noise", *SETTING)
    assert ended.status == 0
    assert "Nothing in 1000 draws of either data set contradicts dp-noise's promise" in ended.stdout
    [mu] = [line.split() for line in ended.stdout.splitlines() if line.strip().startswith("μ,")]
    claimed, found = map(float, mu[-2:])
    assert 1 < found < claimed == 2
    assert "0 of 144" in ended.stdout


def test_a_broken_promise_is_status_1_and_says_why(fl_sim: FlSim) -> None:
    ended = fl_sim("audit-dp", "third_party:ForgetsFactorTwo", *SETTING)
    assert ended.status == 1
    assert "third_party:ForgetsFactorTwo breaks its promise: μ is at least 1." in ended.stdout
    assert "and 1 is claimed" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pruning"], "defense 'pruning' claims no differential privacy (no guarantee): there is"),
        (["dp-nois"], "unknown defense 'dp-nois'; did you mean 'dp-noise'?"),
        (["dp-noise", "--set", "clipping_norm"], "--set must be key.path=value, found"),
        (["dp-noise", "--set", "noise=1"], "unknown option 'noise'"),
        (["dp-sgd", "--set", "clipping_norm=1.0", "--set", "noise_multiplier=-1"], "of at least 0"),
        (["third_party:returns_nothing"], "must build a Defense, found function"),
        (["third_party:Nothing"], "can't be imported"),
        (["dp-noise", *SETTING, "--delta", "2"], "delta must be above 0 and below 1, found 2.0"),
    ],
)
def test_a_mistake_is_one_sentence(fl_sim: FlSim, arguments: list[str], sentence: str) -> None:
    ended = fl_sim("audit-dp", *arguments)
    assert ended.status == 2
    assert sentence in ended.stderr
    assert ended.stdout == ""
    assert len(ended.stderr.strip().splitlines()) == 1
