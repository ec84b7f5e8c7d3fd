"""Defenses of each step's gradient, against independent evaluations of their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks.facts import ClippedGradient, Decaying, LostColumns, ScaledGradient
from defenses import ClientStep, LocalPlan, Place
from defenses.gradient_clipping import GradientClipping
from defenses.learning_rate_noise import LearningRateNoise
from defenses.outpost import Outpost, perturbing_probability
from defenses.soteria import Soteria, telling_ratio
from fl_sim.testing import build_seeded

PLAN = LocalPlan(local_steps=1, batch_size=3, share_size=30)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_gradients() -> dict[str, Tensor]:
    draws = generator(3)
    return {
        "1.weight": torch.randn(6, 9, generator=draws),
        "3.weight": torch.randn(4, 6, generator=draws),
    }


def make_model() -> nn.Module:
    return build_seeded(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(9, 6, bias=False), nn.ReLU(), nn.Linear(6, 4, bias=False)
        )
    )


def make_step(server_round: int = 1, rows: int = 3) -> ClientStep:
    images = torch.rand(rows, 1, 3, 3, generator=generator(1))
    return ClientStep(images, torch.eye(4)[:rows], make_model(), place=Place(server_round))


def norm(tensors: Any) -> float:
    return math.sqrt(sum(float((part.double() ** 2).sum()) for part in tensors.values()))


def test_clipping_bounds_the_norm_and_keeps_the_direction() -> None:
    given = make_gradients()
    clipped = GradientClipping(0.5).on_gradient(make_step(), given, generator())
    assert norm(clipped) == pytest.approx(0.5, rel=1e-6)  # float32 products
    for name, part in given.items():
        torch.testing.assert_close(clipped[name], part * (0.5 / norm(given)))
    assert GradientClipping(0.5).facts() == (ClippedGradient(0.5),)


def test_clipping_leaves_what_is_short() -> None:
    given = make_gradients()
    kept = GradientClipping(norm(given) * 1.01).on_gradient(make_step(), given, generator())
    assert all(torch.equal(kept[name], part) for name, part in given.items())


def test_learning_rate_noise_is_one_factor_log_uniform_in_its_range() -> None:
    given = make_gradients()
    factors = []
    for seed in range(400):
        made = LearningRateNoise(0.5, 8.0).on_gradient(make_step(), given, generator(seed))
        ratios = torch.cat([(made[name] / part).flatten() for name, part in given.items()])
        assert float(ratios.max() - ratios.min()) < 1e-5 * float(ratios.mean())  # float32
        factors.append(float(ratios.mean()))
    logs = np.log2(factors)
    assert -1 <= logs.min() < -0.9  # 400 draws of a uniform one: within 4 / 400 of each end, mostly
    assert 2.9 < logs.max() <= 3
    assert abs(logs.mean() - 1) < 5 * 4 / math.sqrt(12 * 400)
    assert LearningRateNoise().facts() == (ScaledGradient(),)


def test_learning_rate_noise_of_one_factor_is_that_factor() -> None:
    given = make_gradients()
    made = LearningRateNoise(1.0, 1.0).on_gradient(make_step(), given, generator())
    assert all(torch.equal(made[name], part) for name, part in given.items())


def test_soterias_ratio_by_the_jacobian() -> None:
    step = make_step()
    model = step.model
    assert model is not None
    layer = model.get_submodule("3")
    found = telling_ratio(model, layer, step.images)
    below: Callable[[Tensor], Tensor] = nn.Sequential(*list(model.children())[:3])
    each = []
    for image in step.images:
        r = below(image[None])[0]
        slope = torch.autograd.functional.jacobian(lambda x: below(x[None])[0], image).flatten(1)
        size = slope.norm(dim=1)
        each.append(torch.where(size > 0, r.abs() / size, 0.0))
    torch.testing.assert_close(found, torch.stack(each).mean(dim=0).detach())


@pytest.mark.parametrize(("rate", "lost"), [(0.0, 0), (0.5, 3), (0.9, 5)])
def test_soteria_loses_the_columns_that_tell_most(rate: float, lost: int) -> None:
    step, given = make_step(), make_gradients()
    assert step.model is not None
    made = Soteria(rate).on_gradient(step, given, generator())
    ratio = telling_ratio(step.model, step.model.get_submodule("3"), step.images)
    zero = (made["3.weight"] == 0).all(dim=0)
    assert int(zero.sum()) == lost
    assert lost == 0 or ratio[zero].min() >= ratio[~zero].max()
    assert torch.equal(made["3.weight"][:, ~zero], given["3.weight"][:, ~zero])
    assert torch.equal(made["1.weight"], given["1.weight"])
    assert Soteria(rate, "1").facts() == (LostColumns("1"),)


def test_soteria_needs_its_layer() -> None:
    with pytest.raises(ValueError, match="soteria needs a linear layer 'head', found 1, 3"):
        Soteria(layer="head").check(make_model(), PLAN)
    with pytest.raises(ValueError, match="soteria needs a linear layer, found none"):
        Soteria().check(nn.Sequential(nn.Flatten(), nn.ReLU()), PLAN)


def test_outpost_prunes_each_layer_and_adds_noise_to_the_largest_squares() -> None:
    given, step = make_gradients(), make_step()
    assert step.model is not None
    quiet = Outpost(0.0, sparsity=0.5, noise=0.0).on_gradient(step, given, generator())
    loud = Outpost(0.0, sparsity=0.5, noise=0.8, fisher_share=0.25).on_gradient(
        step, given, generator()
    )
    sizes = torch.cat([part.abs().flatten() for part in given.values()])
    least = sizes.sort(descending=True).values[int(0.25 * len(sizes)) - 1]
    for name, part in given.items():
        kept = part.abs() >= part.abs().flatten().sort().values[part.numel() // 2]
        assert torch.equal(quiet[name], torch.where(kept, part, 0.0))
        assert torch.equal(loud[name] != quiet[name], part.abs() >= least)


def test_outposts_noise_has_the_size_of_the_layers_spread() -> None:
    step = make_step()
    assert step.model is not None
    variance = float(step.model.get_parameter("1.weight").detach().var(correction=0))
    given, draws = {"1.weight": torch.zeros(6, 9)}, []
    for seed in range(400):
        defense = Outpost(0.0, sparsity=0.0, noise=0.8, fisher_share=1.0)
        draws.append(defense.on_gradient(step, given, generator(seed))["1.weight"])
    size = float(torch.stack(draws).std())
    # 21,600 draws: a standard deviation is within 5/√(2n) of itself
    assert size == pytest.approx(0.8 * variance, rel=5 / math.sqrt(2 * 21_600))


def test_outpost_perturbs_less_often_over_rounds() -> None:
    given, defense = make_gradients(), Outpost(0.5)
    for server_round, expected in ((1, 1.0), (3, 0.5), (19, 0.1)):
        assert perturbing_probability(server_round - 1, 0.5) == expected
        step = make_step(server_round)
        times = sum(defense.on_gradient(step, given, generator(s)) is not given for s in range(400))
        # five standard deviations of a share of 400
        assert abs(times / 400 - expected) <= 5 * math.sqrt(expected * (1 - expected) / 400)
    assert defense.facts() == (Decaying(0.5),)
