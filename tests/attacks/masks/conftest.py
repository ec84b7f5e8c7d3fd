"""Batches as people train on them: ten digits, one hidden layer, PyTorch's own initialisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import GradientLeak
from defenses.label_smoothing import smooth_labels
from fl_sim.bench.victims import dataset
from fl_sim.models import Normalize
from fl_sim.testing import build_seeded, draw_label, leak_of

KINDS = ("hard", "label-smoothing", "mixup", "mixup+label-smoothing")


@dataclass(frozen=True)
class Digits:
    """A leak of a batch of digits, beside the truth."""

    leak: GradientLeak
    model: nn.Sequential
    images: Tensor
    labels: Tensor


def digits(
    size: int = 16,
    *,
    widths: tuple[int, ...] = (512,),
    classes: int = 10,
    bias: bool | tuple[bool, ...] = True,
    activation: Callable[[], nn.Module] = nn.ReLU,
    kind: str = "label-smoothing",
    seed: int = 0,
    images: Tensor | None = None,
    sent_as: Any = "update",
    **options: Any,
) -> Digits:
    """Build 784-widths-K and the update of one step; labels smoothed alike, or drawn by a kind.

    Biases are all layers' or none's, or each layer's own.
    """
    data = dataset("mnist-5k")
    draws = np.random.default_rng(seed)
    chosen = draws.choice(len(data.images), size, replace=False)
    if images is None:
        images = data.images[chosen].float()
    if kind == "label-smoothing":
        one_hot = nn.functional.one_hot(data.labels[chosen] % classes, classes)
        labels = smooth_labels(one_hot.double(), 0.1)
    else:
        labels = torch.cat([draw_label(classes, kind, draws) for _ in range(size)])

    def build() -> nn.Sequential:
        layers: list[nn.Module] = [Normalize((0.13,), (0.31,)), nn.Flatten()]
        sizes = (784, *widths, classes)
        biases = bias if isinstance(bias, tuple) else (bias,) * len(sizes)
        for inputs, outputs, has_bias in zip(sizes, sizes[1:], biases, strict=False):
            layers += [nn.Linear(inputs, outputs, bias=has_bias), activation()]
        return nn.Sequential(*layers[:-1])

    model = build_seeded(build, seed=seed)
    leak = leak_of(model, images, labels, sent_as=sent_as, **options)
    return Digits(leak, model, images, labels)


@pytest.fixture
def make_digits() -> Callable[..., Digits]:
    """Builds a batch of digits and its leak."""
    return digits
