"""Secure aggregation as the server's view: what is summed, attacked and judged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attacks import facts
from defenses import Chain
from defenses.dp_noise import DPNoise
from defenses.dp_sgd import DPSGD
from defenses.gradient_clipping import GradientClipping
from defenses.label_smoothing import LabelSmoothing
from fl_sim.capture.update import Update
from fl_sim.flower.local_training import LocalTraining
from fl_sim.flower.run import run
from fl_sim.flower.strategy.secure_sum import groups_of, mean_of
from fl_sim.leakage.records import read_lines
from fl_sim.report import build_report
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]
OutcomeOf = Callable[[Path], dict[str, str | bytes]]
RECEIVED = {"w": torch.zeros(3)}
SUMS = (
    "data.clients=6",
    "server.secure_aggregation=3",
    "attack.0.label=soft-label",
    'attack.0.image="analytic"',
    "rounds=2",
)


@pytest.mark.parametrize(
    ("clients", "size", "groups"),
    [
        ([0, 1, 2, 3], 2, [(0, 1), (2, 3)]),
        ([0, 1, 2, 3, 4], 2, [(0, 1), (2, 3, 4)]),
        ([1, 4, 5], 3, [(1, 4, 5)]),
        ([1, 4], 3, [(1, 4)]),
    ],
)
def test_a_rest_joins_the_last_group(
    clients: list[int], size: int, groups: list[tuple[int, ...]]
) -> None:
    assert groups_of(clients, size) == groups


def update(client: int, value: float, **training: Any) -> Update:
    told = LocalTraining(lr=0.1, **({"batch_size": 2} | training))
    sent = {"w": torch.full((3,), value)}
    return Update(1, client, RECEIVED, sent, told, (1, 1, 3))


def test_the_mean_is_weighted_and_of_one_larger_batch() -> None:
    pairs = [(update(0, 1.0, batch_size=1), 1.0), (update(4, 4.0, batch_size=2), 2.0)]
    found = mean_of(pairs, (0, 4))
    assert torch.equal(found.sent["w"], torch.full((3,), 3.0))
    assert (found.training.batch_size, found.training.local_steps) == (3, 1)


def test_over_several_steps_nothing_is_told_of_whose_examples_a_step_took() -> None:
    one = update(0, 1.0, local_steps=2, examples=4, schedule="steps")
    found = mean_of([(one, 1.0), (one, 1.0)], (0, 1))
    assert (found.training.schedule, found.training.examples) == (None, None)
    assert found.training.batch_size == 4


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ([], "0 of 2 clients replied: secure aggregation shows no sum of fewer than 2"),
        ([(update(0, 1.0), 1.0)], "1 of 2 clients replied"),
        (
            [
                (update(0, 1.0), 1.0),
                (dataclasses.replace(update(1, 1.0), received={"w": torch.ones(3)}), 1.0),
            ],
            "the clients received different weights",
        ),
        ([(update(0, 1.0, optimizer="adam"), 1.0)] * 2, "a sum of Adam's steps is neither"),
        ([(update(0, 1.0), 1.0), (update(1, 1.0, local_steps=3), 1.0)], "took \\[1, 3\\] steps"),
    ],
    ids=["none", "one", "weights", "adam", "steps"],
)
def test_what_has_no_mean_that_is_a_gradient_says_why(
    pairs: list[tuple[Update, float]], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        mean_of(pairs, (0, 1))


def test_facts_of_a_mean_are_those_that_are_true_of_it() -> None:
    smoothing, clipping = LabelSmoothing(0.2), GradientClipping(1.0)
    assert Chain([smoothing, clipping]).facts_of_mean(4) == smoothing.facts()
    assert DPNoise(noise_std=0.4).facts_of_mean(4) == (facts.GaussianMechanism(None, 0.2),)
    assert DPNoise(1.0, 0.4).facts_of_mean(4) == ()
    assert DPNoise(noise_std=0.4, distribution="laplace").facts_of_mean(4) == ()
    [told] = DPSGD(1.0, 0.5).facts_of_mean(9)
    assert isinstance(told, facts.ClippedExamples)
    assert math.isclose(told.noise_multiplier, 1.5)


def test_sums_are_attacked_and_judged_by_all_members(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny(*SUMS, "model.name=mlp"), tmp_path)
    records = read_lines(tmp_path / "leakage.jsonl")
    assert {(r["client"], r["members"], r["batch_size"]) for r in records} == {
        (None, "0 1 2", 3),
        (None, "3 4 5", 3),
    }
    assert len(records) == 2 * 2 * 3
    right = [r for r in records if r["label_linf"] is not None and r["label_linf"] < 0.01]
    assert right
    assert all(r["label_linf"] < 0.01 for r in records if r["label_status"] == "RECOVERED")
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert "behind each of 2 sums of clients’ updates" in page
    assert "clients 0 1 2" in page
    assert "client None" not in page


def test_training_is_what_it_would_be_without(
    tiny: Tiny, tmp_path: Path, outcome_of: OutcomeOf
) -> None:
    for name, overrides in (("sums", SUMS), ("single", (SUMS[0], *SUMS[2:]))):
        run(tiny(*overrides), tmp_path / name)
    sums, single = (outcome_of(tmp_path / name) for name in ("sums", "single"))
    assert sums["rounds.jsonl"] == single["rounds.jsonl"]
    weights = [name for name in sums if name.endswith(".safetensors")]
    assert weights
    assert all(sums[name] == single[name] for name in weights)


@pytest.mark.parametrize(
    "stage",
    [
        '{name="gradient-clipping", clipping_norm=0.3}',
        '{name="learning-rate-noise", low=0.5, high=2.0}',
        '{name="dp-noise", clipping_norm=0.02, noise_multiplier=0.0}',
        '{name="sign"}',
    ],
)
def test_what_is_vouched_for_of_clients_that_scale_their_own_is_right(
    tiny: Tiny, tmp_path: Path, stage: str
) -> None:
    attacks = ", ".join(
        f'{{label="soft-label", image="analytic", attacker="{who}"}}'
        for who in ("unaware", "aware")
    )
    for seed in range(4):
        scenario = tiny(
            *("data.clients=6", "server.secure_aggregation=2", "rounds=2", "client.lr=0.1"),
            *(f"attack=[{attacks}]", f"defense=[{stage}]", f"seed={seed}"),
        )
        run(scenario, tmp_path / f"{seed}")
        for record in read_lines(tmp_path / f"{seed}" / "leakage.jsonl"):
            if record["label_status"] == "RECOVERED":
                assert record["label_linf"] < 0.01
            if record["image_status"] == "RECOVERED":
                assert record["psnr_db"] > 50
