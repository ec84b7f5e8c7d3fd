"""LeNets and their kin: what is particular to each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fl_sim.models import lenet, lenet5
from fl_sim.seeds import seeded_layers


def build(factory: Callable[..., nn.Module], **changes: Any) -> nn.Sequential:
    given = {"num_classes": 10, "input_shape": (1, 28, 28), "mean": (0.4,), "std": (0.2,)}
    with seeded_layers(0):
        model = factory(**(given | {"bias": True} | changes))
    assert isinstance(model, nn.Sequential)
    return model


def test_lenet_is_initialised_as_in_the_paper() -> None:
    for parameter in build(lenet, init="dlg").parameters():
        assert parameter.abs().max() <= 0.5
    weights = build(lenet, init="dlg")[-1].weight
    # uniform in ±0.5 has this deviation; the standard error over 5,880 weights is 0.6 %
    assert weights.std().item() == pytest.approx(12**-0.5, rel=0.03)


def test_lenet5_pools_by_two_after_each_convolution() -> None:
    model = build(lenet5)
    sizes = [
        layer(torch.zeros(1, *shape)).shape[1:]
        for layer, shape in ((model[1:4], (1, 28, 28)), (model[4:7], (6, 14, 14)))
    ]
    assert sizes == [(6, 14, 14), (16, 5, 5)]
    assert [type(layer) for layer in model[1:4]] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d]


@pytest.mark.parametrize("shape", [(1, 11, 28), (1, 28, 4)])
def test_lenet5_needs_pixels(shape: tuple[int, int, int]) -> None:
    message = f"at least 12×12 pixels, found {shape[1]}×{shape[2]}"
    with pytest.raises(ValueError, match=message):
        build(lenet5, input_shape=shape)


def test_lenet5_takes_the_smallest_images_that_it_says() -> None:
    model = build(lenet5, input_shape=(1, 12, 13))
    assert model(torch.zeros(1, 1, 12, 13)).shape == (1, 10)
