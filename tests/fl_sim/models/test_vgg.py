"""VGG-11 is torchvision's up to the classifier."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import vgg11 as torchvisions

from fl_sim.models import vgg11
from fl_sim.seeds import seeded_layers


def build(shape: tuple[int, int, int] = (3, 32, 32), **changes: Any) -> nn.Sequential:
    given = {"num_classes": 10, "bias": True, "mean": (0.5,) * shape[0], "std": (0.25,) * shape[0]}
    with seeded_layers(0):
        model = vgg11(input_shape=shape, **(given | changes))
    assert isinstance(model, nn.Sequential)
    return model.eval()


def test_features_are_torchvisions() -> None:
    model = build()
    with seeded_layers(1):
        features = torchvisions(weights=None).features.eval()
    ours = nn.Sequential(*model[1 : 1 + len(features)])
    features.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(features(images), ours(images))
    rest = [type(layer) for layer in model[1 + len(features) :]]
    assert rest == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 4), (1, 28, 28), (3, 33, 45), (3, 64, 96)])
def test_any_size_reaches_the_classifier(shape: tuple[int, int, int]) -> None:
    assert build(shape)(torch.zeros(1, *shape)).shape == (1, 10)


@pytest.mark.parametrize(("side", "averages"), [(28, False), (32, False), (63, False), (64, True)])
def test_only_what_is_left_over_is_averaged(side: int, averages: bool) -> None:
    layers = build((1, side, side))
    assert any(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in layers) is averages


def test_torchvisions_initialisation() -> None:
    """As `torchvision.models.VGG` draws it; within five standard errors."""
    for layer in build(init="torchvision"):
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        fan_out = 9 * layer.out_channels if isinstance(layer, nn.Conv2d) else 2e4
        near = pytest.approx((2 / fan_out) ** 0.5, rel=5 * (2 * layer.weight.numel()) ** -0.5)
        assert layer.weight.std().item() == near
        assert not layer.bias.any()
