"""Stages of one chain that contradict each other, and those that don't."""

from __future__ import annotations

import pytest

from defenses import Chain, Defense
from defenses.dp_noise import DPNoise
from defenses.dp_sgd import DPSGD
from defenses.gradient_clipping import GradientClipping
from defenses.label_smoothing import LabelSmoothing
from defenses.pairs import require_consistent
from defenses.pruning import Pruning
from defenses.soteria import Soteria

CLIP, NOISE = DPNoise(1.0, 0.0), DPNoise(noise_std=0.1)


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ([GradientClipping(1.0), GradientClipping(2.0)], "both clip each step's gradient"),
        ([DPNoise(1.0, 0.5), CLIP], "both clip the update"),
        ([DPSGD(1.0, 0.5), DPSGD(1.0, 0.1)], "both clip each example's gradient"),
        ([GradientClipping(1.0), DPSGD(1.0, 0.5)], "GradientClipping makes of their mean"),
        ([LabelSmoothing(), Soteria(), DPSGD(1.0, 0.5)], "what Soteria makes of their mean"),
    ],
)
def test_a_pair_that_contradicts_itself_is_one_sentence(
    stages: list[Defense], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        Chain(stages)
    assert "leave one out" in str(caught.value)


@pytest.mark.parametrize(
    "stages",
    [
        [CLIP, NOISE],
        [NOISE, NOISE],
        [DPSGD(1.0, 0.5), GradientClipping(1.0)],
        [Pruning(0.5), DPSGD(1.0, 0.5)],
        [LabelSmoothing(), LabelSmoothing(), Soteria(), CLIP],
    ],
    ids=["clip, noise", "noise twice", "clip after dp-sgd", "prune the update", "other halves"],
)
def test_a_pair_that_does_not_is_let_through(stages: list[Defense]) -> None:
    assert Chain(stages).stages == stages


def test_clipping_gradient_and_update_contradict_only_after_a_single_step() -> None:
    stages = [GradientClipping(1.0), CLIP]
    Chain(stages)
    require_consistent(stages, local_steps=2)
    with pytest.raises(ValueError, match="both clip the one gradient that an update of one local"):
        require_consistent(stages, local_steps=1)
