"""ResNet-18: its stem, and that it trains with frozen batch norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fl_sim.data import photos
from fl_sim.models import build_model


def build(shape: tuple[int, int, int], **changes: Any) -> nn.Module:
    given: dict[str, Any] = {"num_classes": 10, "mean": (0.4,) * 3, "std": (0.2,) * 3}
    own = {"options": {}, "bias": False, "input_shape": shape, "seed": 0}
    return build_model("resnet18", **(given | own | changes))


@pytest.mark.parametrize(
    ("shape", "kernel", "pooled"), [((3, 32, 32), 3, False), ((3, 64, 64), 7, True)]
)
def test_resnet18_stem(shape: tuple[int, int, int], kernel: int, pooled: bool) -> None:
    network = build(shape)[1]
    assert network.conv1.kernel_size == (kernel, kernel)
    assert isinstance(network.maxpool, nn.MaxPool2d) is pooled


@pytest.mark.parametrize("lr", [0.01, 0.1])
def test_resnet18_trains_with_frozen_batch_norm(lr: float) -> None:
    """Five federated rounds, 10 clients with one photograph each."""
    dataset = photos(size=32)
    model = build((3, 32, 32), num_classes=8, mean=dataset.mean, std=dataset.std)
    for first in range(0, 50, 10):
        images, labels = dataset.images[first : first + 10], dataset.labels[first : first + 10]
        logits = model(images)
        # Uniform output has 0.125 and a loss of 2.08; the largest seen over 3 seeds: 0.37 and 2.4.
        assert logits.softmax(-1).max() < 0.7
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        assert loss < 3
        # The mean of one-step, one-example updates is one step on the mean gradient.
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= lr * gradient
