"""A model is read once, whoever asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS
from attacks.victim import activation
from attacks.victim.activation import Activation, recognise
from attacks.victim.network import Network
from attacks.victim.trace import watch

Build = Callable[..., Any]
Z = torch.linspace(-3, 3, 121, dtype=torch.float64)[:, None]


def test_a_label_attack_an_image_attack_and_scoring_read_a_model_once(
    make_model: Build, make_label: Build, make_victim: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    of = Network.__init__

    def counted(self: Network, leak: Any) -> None:
        built.append(leak)
        of(self, leak)

    monkeypatch.setattr(Network, "__init__", counted)
    label = make_label(10, "mixup", np.random.default_rng(0))
    leak = make_victim(make_model(10), label).leak
    labels = LABEL_ATTACKS.build("soft-label")(leak, generator=torch.Generator())
    image = IMAGE_ATTACKS.build("analytic")(leak, labels, generator=torch.Generator())
    assert image.images is not None
    Network.of(leak).double_features(image.images)
    assert built == [leak]


def test_a_leak_that_was_read_can_be_copied(
    make_model: Build, make_label: Build, make_victim: Build
) -> None:
    """What was read of one leak isn't taken for another's."""
    leak = make_victim(make_model(10), make_label(10, "hard", np.random.default_rng(0))).leak
    network = Network.of(leak)
    other = dataclasses.replace(leak, model=make_model(10, seed=7))
    assert Network.of(other) is not network
    assert Network.of(leak) is network


def test_calls_are_seen_in_order_with_what_runs_between() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 3)
        model, images = nn.Sequential(*layers), torch.rand(2, 1, 4, 4)
    output, (first, second) = watch(model, lambda: model(images))
    assert (first.name, second.name) == ("0", "3")
    assert second.between == "'1' (ReLU), '2' (Flatten)"
    assert first.output.min() < 0 <= second.given.min()  # before ReLU worked in place
    assert second.output.equal(output)
    assert not model[0]._forward_hooks


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (nn.ReLU(), activation.RELU),
        (nn.Identity(), activation.IDENTITY),
        (nn.Sigmoid(), activation.SIGMOID),
        (nn.Tanh(), activation.TANH),
        (nn.Softplus(), activation.SOFTPLUS),
        (nn.LeakyReLU(0.2), activation.piecewise(0.2)),
        (nn.ELU(0.7), activation.elu(0.7)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_activation_is_recognised_by_its_values(layer: nn.Module, found: Activation) -> None:
    a = layer(Z)
    known = recognise(Z, a)
    assert known is not None
    assert known.name == found.name
    torch.testing.assert_close(known(Z), a)
    z = Z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(layer(z).sum(), z)
    away = Z.abs() > 1e-3  # at a kink there are two slopes
    torch.testing.assert_close(known.slope(a)[away], slope[away])
    if known.is_invertible:
        torch.testing.assert_close(known.inverse(a), Z, rtol=1e-9, atol=1e-9)
    b = a.clone().requires_grad_()
    graph: Tensor = known.slope(b)
    if graph.requires_grad and not known.is_piecewise:
        (bend,) = torch.autograd.grad(graph.sum(), b)
        torch.testing.assert_close(known.bend(a)[away], bend[away])


@pytest.mark.parametrize("layer", [nn.GELU(), nn.SiLU(), nn.Hardtanh(0, 0.5)])
def test_other_activations_are_not_recognised(layer: nn.Module) -> None:
    assert recognise(Z, layer(Z)) is None
