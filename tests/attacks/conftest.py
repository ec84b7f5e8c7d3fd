"""Victims: small networks, augmented labels, and what a server sees of one example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import GradientLeak
from fl_sim.testing import build_seeded, draw_label, leak_of
from fl_sim.testing.leaks import SentAs

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
    """Build n-64-hidden-K with PyTorch's initialisation, on pixels shifted by half."""
    pixels = int(np.prod(shape))
    return build_seeded(
        lambda: nn.Sequential(
            _Shift(),
            nn.Flatten(),
            nn.Linear(pixels, 64, bias=bias),
            activation(),
            nn.Linear(64, hidden, bias=bias),
            activation(),
            nn.Linear(hidden, classes, bias=bias),
        ),
        seed=seed,
    )


class _Shift(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images - 0.5) / 0.25


def victim_of(
    model: nn.Module,
    label: Tensor,
    *,
    sent_as: SentAs = "update",
    seed: int = 0,
    shape: tuple[int, int, int] = SHAPE,
    **options: Any,
) -> Victim:
    """Return what a server sees of one step on random images; see `leak_of`."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(len(label), *shape, generator=generator)
    images = images.to(torch.float64 if sent_as == "float64" else torch.float32)
    leak = leak_of(model, images, label, sent_as=sent_as, generator=generator, **options)
    with torch.no_grad():
        feature = model[:-1](images) if isinstance(model, nn.Sequential) else images
    return Victim(leak, images, label, feature)


@pytest.fixture
def make_model() -> Callable[..., nn.Sequential]:
    """Builds a small fully connected network."""
    return fully_connected


@pytest.fixture
def make_label() -> Callable[[int, str, np.random.Generator], Tensor]:
    """Draws an augmented label."""
    return draw_label


@pytest.fixture
def make_victim() -> Callable[..., Victim]:
    """Returns a leak and the truth behind it."""
    return victim_of


@pytest.fixture
def short_options() -> Callable[[str], dict[str, Any]]:
    """Returns options that make an image attack short, if it searches."""
    searches = ("dlg", "inverting-gradients", "gradinversion", "feature-matching", "auto")
    return lambda name: {"iterations": 2, "restarts": 1} if name in searches else {}
