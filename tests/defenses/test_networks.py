"""Defenses that change the network: dropout and PRECODE's bottleneck."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from attacks.facts import Bottleneck, DroppedUnits
from defenses import LocalPlan
from defenses.dropout import Dropout, with_dropout
from defenses.precode import Precode, VariationalBottleneck
from fl_sim.testing import build_seeded


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _own_generator() -> Iterator[None]:
    """Layers that draw take PyTorch's generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make_model() -> nn.Module:
    return build_seeded(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(9, 200), nn.ReLU(), nn.Sequential(nn.Linear(200, 5))
        )
    )


def test_dropout_stands_behind_activations_and_acts_in_train_mode() -> None:
    model = make_model()
    changed = Dropout(0.25).on_model(model, generator())
    images = torch.rand(50, 1, 3, 3, generator=generator(1))
    assert torch.equal(changed.eval()(images), model(images))
    torch.manual_seed(0)
    dropped = changed.train()[2](torch.ones(50, 200))
    share = float((dropped == 0).double().mean())
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / 10_000) ** 0.5
    assert dropped[dropped > 0].unique().tolist() == pytest.approx([1 / 0.75])
    assert list(dict(changed.named_parameters())) == list(dict(model.named_parameters()))
    assert Dropout(0.25).facts() == (DroppedUnits(0.25),)


def test_dropout_refuses_eval_mode() -> None:
    plan = LocalPlan(local_steps=1, batch_size=1, share_size=1, mode="train")
    Dropout().check(make_model(), plan)
    with pytest.raises(ValueError, match=r"dropout acts in train mode alone: set client\.mode"):
        Dropout().check(make_model(), dataclasses.replace(plan, mode="eval"))


def test_no_dropout_changes_nothing() -> None:
    model = make_model()
    images = torch.rand(5, 1, 3, 3, generator=generator(1))
    assert torch.equal(with_dropout(model, 0.0).train()(images), model(images))


def test_dropout_needs_activation_modules() -> None:
    with pytest.raises(ValueError, match=r"needs activations that are modules .* found none in"):
        Dropout().on_model(nn.Linear(3, 2), generator())


def test_the_bottleneck_draws_around_its_mean() -> None:
    layer = build_seeded(lambda: VariationalBottleneck(20, 8, 0.0))
    features = torch.randn(1, 20, generator=generator(1)).expand(20_000, 20)
    torch.manual_seed(0)
    with torch.no_grad():
        found = layer(features)
        mean, log_variance = layer.encoder(features[:1]).chunk(2, dim=1)
        expected = layer.decoder(mean)
        spread = ((log_variance.exp() * layer.decoder.weight**2).sum(dim=1)).sqrt()
    # five standard deviations of a mean, and of a standard deviation, of 20,000 draws
    assert float(((found.mean(dim=0) - expected[0]).abs() / spread).max()) < 5 / 20_000**0.5
    assert float((found.std(dim=0) / spread - 1).abs().max()) < 5 / 40_000**0.5


def test_the_gradient_holds_that_of_the_divergence() -> None:
    beta, layer = 0.3, build_seeded(lambda: VariationalBottleneck(6, 4, 0.3))
    features = torch.randn(5, 6, generator=generator(1))
    torch.manual_seed(0)
    layer(features).square().mean().backward()
    found = layer.encoder.weight.grad.clone()
    plain = build_seeded(lambda: VariationalBottleneck(6, 4, 0.0))
    torch.manual_seed(0)
    mean, log_variance = plain.encoder(features).chunk(2, dim=1)
    divergence = (mean**2 + log_variance.exp() - 1 - log_variance).sum() / 2 / len(features)
    (plain(features).square().mean() + beta * divergence).backward()
    torch.testing.assert_close(found, plain.encoder.weight.grad)


def test_precode_stands_in_front_of_the_last_layer_and_trains() -> None:
    model, defense = make_model(), Precode(16)
    changed = defense.on_model(model, generator())
    again = defense.on_model(model, generator())
    other = defense.on_model(model, generator(1))
    for (name, one), two in zip(changed.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two), name
    drawn = "3.0.0.encoder.weight"
    assert not torch.equal(changed.get_parameter(drawn), other.get_parameter(drawn))
    assert torch.equal(changed.get_parameter("3.0.1.weight"), model.get_parameter("3.0.weight"))
    labels = torch.arange(40) % 5
    images = torch.rand(5, 1, 3, 3, generator=generator(2))[labels]
    optimizer = torch.optim.SGD(changed.parameters(), lr=0.5)
    torch.manual_seed(0)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = cross_entropy(changed(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    assert defense.facts() == (Bottleneck(16, 1e-3),)


def test_precode_needs_a_linear_layer_within() -> None:
    with pytest.raises(ValueError, match=r"needs a linear layer within the network .* found none"):
        Precode().on_model(nn.Linear(3, 2), generator())
