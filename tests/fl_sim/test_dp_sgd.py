"""DP-SGD in a run: who is drawn, how ε adds up, and where it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_sim import Scenario, run
from fl_sim.errors import UserError
from fl_sim.federation import Federation
from fl_sim.flower.server import Server
from fl_sim.privacy.spending import PrivacySpending
from fl_sim.report.text import notice
from fl_sim.results.recorded import RecordedRun
from fl_sim.run_folder import RunFolder

Tiny = Callable[..., Scenario]
STAGE = {"name": "dp-sgd", "clipping_norm": 1.0, "noise_multiplier": 1.0}


def private(tiny: Tiny, **changes: Any) -> Scenario:
    return tiny().with_changes({"defense": [STAGE], "client.batch_size": 2, **changes})


def epsilons(folder: Path) -> list[float]:
    lines = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["epsilon"] for line in lines]


def test_examples_are_drawn_each_on_its_own_at_the_rate_of_the_batch(tiny: Tiny) -> None:
    federation = Federation.of(private(tiny))
    share = len(federation.shares[0])
    sizes = [len(federation.client_batch(0, r, 0).images) for r in range(1, 2001)]
    rate = 2 / share
    # the mean of 2,000 binomial counts, within five of its standard deviations
    spread = (share * rate * (1 - rate) / 2000) ** 0.5
    assert abs(sum(sizes) / 2000 - 2) < 5 * spread
    assert min(sizes) == 0
    assert max(sizes) > 3
    [claim] = PrivacySpending.of(federation).claims[0]
    assert (claim.sampling, claim.unit, claim.releases) == (rate, "example", 1)


def test_a_run_goes_through_empty_batches_and_resumes_with_the_same_epsilon(
    tiny: Tiny, tmp_path: Path, outcome_of: Callable[[Path], Any]
) -> None:
    whole = private(tiny, **{"rounds": 5, "client.batch_size": 1})
    federation = Federation.of(whole)
    drawn = [len(federation.client_batch(c, r, 0).images) for c in range(3) for r in range(1, 6)]
    assert 0 in drawn
    run(whole, tmp_path / "whole")
    run(whole.with_changes({"rounds": 2}), tmp_path / "parts")
    run(whole, tmp_path / "parts", resume=True)
    assert epsilons(tmp_path / "whole") == epsilons(tmp_path / "parts")
    assert outcome_of(tmp_path / "whole") == outcome_of(tmp_path / "parts")


def test_training_ends_before_epsilon_is_beyond_its_target(tiny: Tiny, tmp_path: Path) -> None:
    free = private(tiny, rounds=5)
    run(free, tmp_path / "free")
    reached = epsilons(tmp_path / "free")
    target = (reached[3] + reached[4]) / 2
    held = private(tiny, **{"rounds": 5, "privacy.epsilon_target": target})
    assert not Server(held, RunFolder(tmp_path / "held")).is_done
    run(held, tmp_path / "held")
    assert Server(held, RunFolder(tmp_path / "held")).is_done
    assert epsilons(tmp_path / "held") == reached[:4]
    recorded = RecordedRun.read(tmp_path / "held")
    assert recorded.is_finished
    sentence = notice(recorded, tmp_path / "held")
    assert sentence is not None
    assert sentence.startswith("Training ended after 3 of 5 rounds: one more would have taken ε to")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"privacy.epsilon_target": 1e-6}, "epsilon_target must be at least the ε after one round"),
        (
            {"defense": [{"name": "label-smoothing"}], "privacy.epsilon_target": 1.0},
            "epsilon_target belongs to a defense that guarantees an ε, found 1 without one",
        ),
        (
            {"defense": [STAGE, {"name": "mixup"}]},
            r"draws every example on its own .* and another one mixes 2 into one: leave one",
        ),
        (
            {"client.local_epochs": 1},
            "dp-sgd draws every example on its own in each step: set client.local_steps",
        ),
        (
            {"defense": [{"name": "dropout"}]},
            "dropout acts in train mode alone: set client.mode",
        ),
        (
            {"defense": [{"name": "vicinal"}], "client.batch_size": 1},
            "pairs need an even number of examples in a batch, found 1",
        ),
        (
            {"defense": [{"name": "soteria", "layer": "head"}]},
            "soteria needs a linear layer 'head', found",
        ),
    ],
)
def test_what_doesnt_fit_is_said_before_the_run(
    changes: dict[str, Any], sentence: str, tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        run(private(tiny, **changes), tmp_path / "run")
    assert not list(tmp_path.glob("run/rounds.jsonl"))
