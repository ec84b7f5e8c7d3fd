"""Victims: small networks, augmented labels, and what a server sees of one example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attacks import GradientLeak, Knowledge

SHAPE = (1, 12, 12)


@dataclass(frozen=True)
class Victim:
    """A leak beside the truth behind it."""

    leak: GradientLeak
    image: Tensor
    label: Tensor
    feature: Tensor


def fully_connected(
    classes: int,
    *,
    bias: bool = False,
    activation: type[nn.Module] = nn.ReLU,
    seed: int = 0,
    shape: tuple[int, int, int] = SHAPE,
    hidden: int = 32,
) -> nn.Sequential:
    """Build n-64-hidden-K with He initialisation, on pixels shifted by half."""
    pixels = int(np.prod(shape))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            _Shift(),
            nn.Flatten(),
            nn.Linear(pixels, 64, bias=bias),
            activation(),
            nn.Linear(64, hidden, bias=bias),
            activation(),
            nn.Linear(hidden, classes, bias=bias),
        )


class _Shift(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images - 0.5) / 0.25


def augmented_label(classes: int, kind: str, generator: np.random.Generator) -> Tensor:
    """Draw a label (1, K), with ε ~ U(0.01, 0.5) and mixing ~ U(0.05, 0.95)."""
    label = np.zeros(classes)
    a, b = generator.choice(classes, 2, replace=False)
    mixing = generator.uniform(0.05, 0.95)
    epsilon = generator.uniform(0.01, 0.5)
    if "mixup" in kind:
        label[a], label[b] = mixing, 1 - mixing
    else:
        label[a] = 1
    if "smoothing" in kind:
        label = (1 - epsilon) * label + epsilon / classes
    return torch.from_numpy(label)[None]


def leak_of(
    model: nn.Module,
    label: Tensor,
    *,
    sent_as: str = "update",
    seed: int = 0,
    lr: float = 0.1,
    noise_std: float = 0.0,
    factor: float = 1.0,
    shape: tuple[int, int, int] = SHAPE,
    knowledge: Knowledge | None = None,
    **fields: Any,
) -> Victim:
    """Return what a server sees of one step on random images.

    It is sent as an "update" (float32 weights) or as a "float32" or "float64" gradient. An update
    is multiplied by `factor`, as by clipping, and gets Gaussian noise of `noise_std`.
    """
    generator = torch.Generator().manual_seed(seed)
    precision = torch.float64 if sent_as == "float64" else torch.float32
    model = model.to(precision)
    image = torch.rand(len(label), *shape, generator=generator).to(precision)
    parameters = dict(model.named_parameters())
    loss = cross_entropy(model(image), label.to(precision))
    computed = torch.autograd.grad(loss, list(parameters.values()))
    gradients = dict(zip(parameters, computed, strict=True))
    options: dict[str, Any] = {}
    if sent_as == "update":
        options = {"lr": lr, "update_dtype": torch.float32}
        for name, weight in parameters.items():
            noise = noise_std * torch.randn(weight.shape, generator=generator)
            sent = (weight - lr * factor * gradients[name] + noise).detach()
            gradients[name] = (weight.detach().double() - sent.double()) / lr
    leak = GradientLeak(
        model,
        gradients,
        batch_size=len(label),
        input_shape=shape,
        knowledge=knowledge or Knowledge(),
        **{**options, **fields},
    )
    with torch.no_grad():
        feature = model[:-1](image) if isinstance(model, nn.Sequential) else image
    return Victim(leak, image, label, feature)


@pytest.fixture
def make_model() -> Callable[..., nn.Sequential]:
    """Builds a small fully connected network."""
    return fully_connected


@pytest.fixture
def make_label() -> Callable[[int, str, np.random.Generator], Tensor]:
    """Draws an augmented label."""
    return augmented_label


@pytest.fixture
def make_victim() -> Callable[..., Victim]:
    """Returns a leak and the truth behind it."""
    return leak_of
