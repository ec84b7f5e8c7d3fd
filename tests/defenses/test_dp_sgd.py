"""DP-SGD: clipping example by example, noise on the sum, and what it doesn't fit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from attacks.facts import ClippedExamples
from defenses import ClientStep, LocalPlan, Privacy
from defenses.dp_sgd import DPSGD, clip_examples

PLAN = LocalPlan(local_steps=3, batch_size=8, share_size=400)


def make_examples(rows: int = 5) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-2, 2, rows).reshape(-1, 1, 1)
    return {
        "w": sizes * torch.randn(rows, 4, 3, generator=draws),
        "b": sizes[:, 0] * torch.randn(rows, 4, generator=draws),
    }


def make_step(examples: dict[str, Tensor], expected: int | None = None) -> ClientStep:
    rows = len(examples["w"])
    return ClientStep(
        torch.zeros(rows, 1, 2, 2),
        torch.zeros(rows, 2),
        per_example_gradients=lambda: examples,
        expected_examples=expected,
    )


def mean_of(examples: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: part.sum(dim=0) / max(len(part), 1) for name, part in examples.items()}


def test_each_example_is_clipped_over_all_its_tensors() -> None:
    examples = make_examples()
    clipped = clip_examples(examples, 0.5)
    for row in range(5):
        norm = math.sqrt(
            sum(float(part[row].double().square().sum()) for part in examples.values())
        )
        for name, part in examples.items():
            expected = part[row] * min(1.0, 0.5 / norm)
            torch.testing.assert_close(clipped[name][row], expected)


def test_without_noise_it_is_the_clipped_sum_over_the_expected_examples() -> None:
    examples = make_examples()
    made = DPSGD(0.5, 0.0).on_gradient(
        make_step(examples, expected=8), mean_of(examples), torch.Generator()
    )
    for name, part in clip_examples(examples, 0.5).items():
        torch.testing.assert_close(made[name], part.sum(dim=0) / 8)


def test_a_large_norm_without_noise_is_the_mean() -> None:
    examples = make_examples()
    made = DPSGD(1e6, 0.0).on_gradient(make_step(examples), mean_of(examples), torch.Generator())
    for name, part in mean_of(examples).items():
        torch.testing.assert_close(made[name], part)


@pytest.mark.parametrize("rows", [0, 5])
def test_the_noise_is_that_of_the_norm_whoever_is_in_the_batch(rows: int) -> None:
    examples = {"w": 1e-9 * torch.ones(rows, 300, 300), "b": 1e-9 * torch.ones(rows, 4)}
    made = DPSGD(0.5, 3.0).on_gradient(
        make_step(examples, expected=8), mean_of(examples), torch.Generator().manual_seed(1)
    )
    # 90,000 draws: five standard deviations of a standard deviation
    assert float(made["w"].std()) == pytest.approx(3.0 * 0.5 / 8, rel=5 / math.sqrt(180_000))


def test_its_claim_is_that_of_one_example_in_each_step() -> None:
    claim = DPSGD(0.5, 3.0).privacy(PLAN)
    assert claim == Privacy(0.5, 1.5, sampling=0.02, unit="example", releases=3)
    assert DPSGD(0.5, 3.0).facts() == (ClippedExamples(0.5, 3.0),)
    assert DPSGD.is_poisson


def test_it_refuses_epochs_and_batch_norm_in_train_mode() -> None:
    model, norm = nn.Flatten(), nn.Sequential(nn.BatchNorm2d(1), nn.Flatten())
    defense = DPSGD(1.0, 1.0)
    defense.check(model, PLAN)
    defense.check(norm, PLAN)
    epochs = LocalPlan(local_steps=50, batch_size=8, share_size=400, local_epochs=1)
    with pytest.raises(ValueError, match="draws every example on its own in each step: set client"):
        defense.check(model, epochs)
    training = LocalPlan(local_steps=1, batch_size=8, share_size=400, mode="train")
    with pytest.raises(ValueError, match=r"batch norm in train mode doesn.t have: .* found 0"):
        defense.check(norm, training)
