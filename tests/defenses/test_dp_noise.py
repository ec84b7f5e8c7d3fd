"""Clipping and noise: values, the noise's size and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from attacks.facts import LaplaceMechanism
from defenses import LocalPlan
from defenses.base import Place
from defenses.dp_noise import DPNoise, clip


def norm_of(update: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for part in update.values()))


@pytest.mark.parametrize(
    ("clipping_norm", "expected"),
    [(1.0, [0.6, 0.8]), (4.9, [2.94, 3.92]), (5.0, [3, 4]), (6.0, [3, 4]), (math.inf, [3, 4])],
)
def test_clip_scales_all_tensors_together(clipping_norm: float, expected: list[float]) -> None:
    update = {"a": torch.tensor([[3.0]]).double(), "b": torch.tensor([4.0]).double()}
    clipped = clip(update, clipping_norm)
    assert [part.shape for part in clipped.values()] == [(1, 1), (1,)]
    # float64, three operations
    assert [float(part) for part in clipped.values()] == pytest.approx(expected, rel=1e-15)


def test_a_zero_update_stays_zero() -> None:
    assert clip({"w": torch.zeros(3)}, 1.0)["w"].tolist() == [0.0, 0.0, 0.0]
    assert clip({}, 1.0) == {}


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_clipped_norm_is_at_most_the_bound(scale: float) -> None:
    update = {"w": scale * torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    # The float32 product rounds by up to 6e-8 of each entry.
    assert norm_of(clip(update, 0.5)) <= 0.5 * (1 + 6e-8)


def test_clipping_makes_no_alias_of_its_input() -> None:
    update = {"w": torch.ones(2)}
    clip(update, math.inf)["w"].zero_()
    assert update["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("clipping_norm", "noise_multiplier"), [(1.0, 0.5), (3.0, 2.0)])
def test_noise_has_the_stated_size_and_is_gaussian(
    clipping_norm: float, noise_multiplier: float
) -> None:
    size = 1_000_000
    noisy = DPNoise(clipping_norm, noise_multiplier).on_update(
        {"w": torch.zeros(size)}, Place(), torch.Generator().manual_seed(0)
    )["w"]
    unit = noisy.double() / (clipping_norm * noise_multiplier)
    # Five standard deviations each: 1/√n for a mean, 1/√(2n) for a standard deviation, √(24/n)
    # for a kurtosis.
    assert abs(unit.mean()) < 5 / math.sqrt(size)
    assert abs(unit.std() - 1) < 5 / math.sqrt(2 * size)
    assert abs(unit.pow(4).mean() - 3) < 5 * math.sqrt(96 / size)  # its own: Var x⁴ = 96


@pytest.mark.parametrize("noise_std", [0.5, 3.0])
def test_laplace_noise_has_the_stated_size_and_tails(noise_std: float) -> None:
    size = 1_000_000
    defense = DPNoise(noise_std=noise_std, distribution="laplace")
    noisy = defense.on_update(
        {"w": torch.zeros(size).double()}, Place(), torch.Generator().manual_seed(0)
    )["w"]
    unit = noisy / noise_std
    # Five standard deviations: Var x² = 5, and of the fourth moment, 6, Var x⁴ = 40320/16 − 36.
    assert abs(unit.mean()) < 5 / math.sqrt(size)
    assert abs(unit.square().mean() - 1) < 5 * math.sqrt(5 / size)
    assert abs(unit.pow(4).mean() - 6) < 5 * math.sqrt(2484 / size)
    assert defense.facts() == (LaplaceMechanism(None, noise_std),)


def test_noise_without_a_bound_or_of_laplace_claims_no_privacy() -> None:
    plan = LocalPlan(local_steps=1, batch_size=1, share_size=10)
    assert DPNoise(noise_std=1.0).privacy(plan) is None
    assert DPNoise(1.0, noise_std=1.0, distribution="laplace").privacy(plan) is None
    assert DPNoise(2.0, noise_std=1.0).privacy(plan) == DPNoise(2.0, 0.5).privacy(plan)


def test_noise_without_clipping_leaves_the_update_its_size() -> None:
    update = {"w": torch.full((1000,), 7.0)}
    noisy = DPNoise(noise_std=1e-3).on_update(update, Place(), torch.Generator().manual_seed(0))
    assert 0 < float((noisy["w"] - 7).abs().max()) < 6e-3


def test_tensors_of_one_update_get_different_noise() -> None:
    update = {"a": torch.zeros(4), "b": torch.zeros(4)}
    noisy = DPNoise(1.0, 1.0).on_update(update, Place(), torch.Generator().manual_seed(0))
    assert not torch.equal(noisy["a"], noisy["b"])


def test_noise_follows_the_clipping() -> None:
    defense, update = DPNoise(1.0, 0.5), {"w": torch.tensor([30.0, 40.0])}
    noisy = defense.on_update(update, Place(), torch.Generator().manual_seed(7))
    noise = defense.on_update({"w": torch.zeros(2)}, Place(), torch.Generator().manual_seed(7))
    # float32 sums of numbers near 1
    torch.testing.assert_close(noisy["w"] - noise["w"], torch.tensor([0.6, 0.8]), rtol=0, atol=1e-6)


def test_without_noise_it_only_clips() -> None:
    update = {"w": torch.tensor([3.0, 4.0])}
    clipped = DPNoise(1.0, 0.0).on_update(update, Place(), torch.Generator())
    assert torch.equal(clipped["w"], clip(update, 1.0)["w"])


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, "1"])
def test_refuses_an_impossible_clipping_norm(value: Any) -> None:
    with pytest.raises(ValueError, match="clipping_norm must be a finite number above 0, found"):
        DPNoise(value, 1.0)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "1"])
def test_refuses_an_impossible_noise_multiplier(value: Any) -> None:
    with pytest.raises(ValueError, match="noise_multiplier must be a finite number of at least 0"):
        DPNoise(1.0, value)
