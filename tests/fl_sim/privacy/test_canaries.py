"""Canaries: what they send, what is found of it, and what a run says of that."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fl_sim.errors import UserError
from fl_sim.federation import Federation
from fl_sim.flower.client import train_locally
from fl_sim.flower.run import run
from fl_sim.flower.wire import wire_tensors
from fl_sim.leakage.records import read_lines
from fl_sim.privacy.canaries import CanaryScores, canary_vector, mu_bound, score
from fl_sim.report import build_report
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]
OutcomeOf = Callable[[Path], dict[str, str | bytes]]
FlSim = Callable[..., Any]
CANARIES = ("data.clients=8", "audit.canaries=6")
KEYS = [f"canary_{view}_{what}" for view in ("updates", "round", "model") for what in ("mu",)]


def noisy(multiplier: float, *, clipping_norm: float = 0.5) -> str:
    stage = f'name="dp-noise", clipping_norm={clipping_norm}, noise_multiplier={multiplier}'
    return f"defense=[{{{stage}}}]"


def test_the_bound_is_above_the_truth_in_at_most_5_percent() -> None:
    draws = np.random.default_rng(0)
    for count in (5, 6, 20, 40):
        bounds = [mu_bound(list(draws.normal(3.0, 1.0, count))) for _ in range(1000)]
        wrong = sum(bound is not None and bound > 3.0 for bound in bounds)
        # With 5 %, more than 80 of 1,000 come once in 20,000 such tests.
        assert wrong <= 80
    assert np.mean([b for b in bounds if b is not None]) > 2.5


@pytest.mark.parametrize(
    ("scores", "bound"),
    [([9.0] * 4, None), ([], None), ([5.0, 4.0, 3.0, 2.0, 7.0], 2.0), ([-1.0] * 9, 0.0)],
)
def test_few_scores_bound_nothing(scores: list[float], bound: float | None) -> None:
    assert mu_bound(scores) == bound


def test_a_vector_without_a_part_scores_as_normal_noise_does(tiny: Tiny) -> None:
    federation = Federation.of(tiny("data.clients=20", "audit.canaries=20"))
    vectors = [canary_vector(federation, client) for client in range(20)]
    generator = torch.Generator().manual_seed(0)
    scores = []
    for _ in range(50):
        noise = {n: torch.randn(p.shape, generator=generator) for n, p in vectors[0].items()}
        scores += [score(vector, noise) for vector in vectors]
    assert all(
        math.isclose(sum(float(p.square().sum()) for p in v.values()), 1, rel_tol=1e-12)
        for v in vectors
    )
    assert kstest(scores, "norm").pvalue > 1e-3  # d is 68 here: nearly normal, of 1,000 scores


def test_a_canary_sends_its_vector_at_the_clipping_norm(tiny: Tiny) -> None:
    scenario = tiny(*CANARIES, noisy(0.0))
    federation = Federation.of(scenario)
    received = wire_tensors(federation.build_model(), "eval")
    for client in scenario.canaries:
        sent = train_locally(scenario, client, 1, received).weights
        vector = canary_vector(federation, client)
        for name, part in vector.items():
            # float32 weights of up to 0.25
            assert torch.allclose(sent[name] - received[name], 0.5 * part.float(), atol=5e-8)
    trains = train_locally(scenario, 0, 1, received).weights
    assert trains["2.weight"].equal(
        train_locally(tiny("data.clients=8", noisy(0.0)), 0, 1, received).weights["2.weight"]
    )


def test_without_a_claim_a_canary_is_as_long_as_what_it_trained(tiny: Tiny) -> None:
    weights = []
    for overrides in (CANARIES, CANARIES[:1]):
        scenario = tiny(*overrides)
        received = wire_tensors(Federation.of(scenario).build_model(), "eval")
        sent = train_locally(scenario, 7, 1, received).weights
        weights.append([sent[name].double() - received[name].double() for name in sent])
    lengths = [math.sqrt(sum(float(p.square().sum()) for p in each)) for each in weights]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-5)  # float32 weights
    assert not torch.allclose(weights[0][0], weights[1][0])


def bounds(scenario: Scenario, out: Path) -> list[dict[str, Any]]:
    run(scenario, out)
    return read_lines(out / "rounds.jsonl")[1:]


def test_a_run_bounds_epsilon_by_round_and_for_the_model(tiny: Tiny, tmp_path: Path) -> None:
    scenario = tiny(*CANARIES, noisy(1e-3), "rounds=3", "attack.0.label=third_party:Draws")
    lines = bounds(scenario, tmp_path / "run")
    for line in lines:
        # d = 68: a score of √68 is all there is, and nothing but the vector left its client.
        assert line["canary_updates_mu"] == pytest.approx(math.sqrt(68 * line["round"]), rel=1e-3)
        for view in ("updates", "round", "model"):
            assert 0 <= line[f"canary_{view}_mu"] <= line["canary_updates_mu"]
            assert line[f"canary_{view}_epsilon"] <= line["epsilon"]
    records = read_lines(tmp_path / "run" / "leakage.jsonl")
    assert {record["client"] for record in records} == {0, 1}
    page = build_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "6 of 8 clients are canaries. Each sends a random vector" in page
    assert "ε, by canaries" in page
    assert "canaries in the model: at least" in page


def test_noise_hides_canaries(tiny: Tiny, tmp_path: Path) -> None:
    found = [
        bounds(tiny(*CANARIES, noisy(z), "attack=[]"), tmp_path / f"{z}")[-1] for z in (0.01, 100.0)
    ]
    assert found[0]["canary_updates_mu"] > 5
    assert found[1]["canary_updates_mu"] < 2
    assert all(line["canary_updates_epsilon"] <= line["epsilon"] for line in found)


def test_a_run_that_goes_on_bounds_what_an_unbroken_one_does(
    tiny: Tiny, tmp_path: Path, outcome_of: OutcomeOf
) -> None:
    scenario = tiny(*CANARIES, noisy(0.3), "rounds=4", "client.fraction=0.8", "attack=[]")
    run(scenario, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill(now: int, replies: int, clients: int) -> None:
        if (now, replies) == (3, 2):
            raise Killed

    with pytest.raises(Killed):
        run(scenario, tmp_path / "broken", on_progress=kill)
    run(scenario, tmp_path / "broken", resume=True)
    assert outcome_of(tmp_path / "broken") == outcome_of(tmp_path / "whole")
    assert all(
        key in line for line in read_lines(tmp_path / "whole/rounds.jsonl")[1:] for key in KEYS
    )


@pytest.mark.slow
def test_canaries_are_the_same_in_processes_of_their_own(
    tiny: Tiny, tmp_path: Path, outcome_of: OutcomeOf
) -> None:
    scenario = tiny("data.clients=6", "audit.canaries=5", noisy(0.3), "attack=[]")
    run(scenario, tmp_path / "local")
    run(scenario.with_changes({"engine": "ray"}), tmp_path / "ray")
    ours, theirs = outcome_of(tmp_path / "local"), outcome_of(tmp_path / "ray")
    assert ours["rounds.jsonl"] == theirs["rounds.jsonl"]


def test_claims_of_an_example_are_not_theirs(tiny: Tiny) -> None:
    stage = 'defense=[{name="dp-sgd", clipping_norm=1.0, noise_multiplier=1.0}]'
    with pytest.raises(UserError, match="the defenses claim their ε of an example, found 6"):
        CanaryScores(Federation.of(tiny(*CANARIES, stage)))


def test_all_clients_may_be_canaries(tiny: Tiny, tmp_path: Path) -> None:
    scenario = tiny("data.clients=5", "audit.canaries=5", noisy(1e-3), "rounds=1")
    assert bounds(scenario, tmp_path / "run")[-1]["canary_round_mu"] > 0
