"""Clients that train several steps on digits, and what they send."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from attacks import GradientLeak
from attacks.training import SGD
from defenses.label_smoothing import smooth_labels
from fl_sim.bench.victims import dataset
from fl_sim.models import Normalize
from fl_sim.testing import build_seeded, draw_label
from fl_sim.testing.leaks import leak_of_steps


@dataclass(frozen=True)
class Trained:
    """A leak beside the truth."""

    leak: GradientLeak
    images: Tensor
    labels: Tensor
    local: nn.Module


def trained(
    examples: int = 4,
    steps: int = 5,
    *,
    lr: float = 0.1,
    widths: tuple[int, ...] = (256,),
    bias: bool = False,
    kind: str = "label-smoothing",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    batches: Sequence[Sequence[int]] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    drop: float = 0.0,
    **options: Any,
) -> Trained:
    """Train 784-widths-10 by PyTorch's own SGD, in the precision given, and return the update."""
    data, draws = dataset("mnist-5k"), np.random.default_rng(seed)
    chosen = draws.choice(len(data.images), examples, replace=False)
    images = data.images[chosen].to(dtype)
    if kind == "label-smoothing":
        labels = smooth_labels(one_hot(data.labels[chosen], 10).double(), 0.1)
    elif kind == "soft":
        labels = torch.from_numpy(draws.dirichlet(np.full(10, 0.5), examples))
    else:
        labels = torch.cat([draw_label(10, kind, draws) for _ in range(examples)])
    model = build_seeded(lambda: _network(widths, bias), seed=seed).to(dtype)
    local = copy.deepcopy(model)
    stepper = optimizer(local.parameters(), lr=lr, **options)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        used = list(range(examples)) if batches is None else list(batches[step])
        stepper.zero_grad()
        hidden = local[:-1](images[used])
        if drop:
            kept = torch.rand(hidden.shape, generator=generator) >= drop
            hidden = hidden * kept / (1 - drop)
        loss(local[-1](hidden), labels[used].to(dtype)).backward()  # type: ignore[no-untyped-call]
        stepper.step()
    told = options if optimizer is torch.optim.SGD else {}
    leak = leak_of_steps(
        model,
        local,
        SGD(lr, **told),
        steps,
        batch_size=max(map(len, batches)) if batches else examples,
        input_shape=(1, 28, 28),
        examples=examples,
        schedule=tuple(map(tuple, batches)) if batches else "full-batch",
    )
    return Trained(leak, images.double(), labels, local)


def _network(widths: tuple[int, ...], bias: bool) -> nn.Sequential:
    layers: list[nn.Module] = [Normalize((0.13,), (0.31,)), nn.Flatten()]
    for inputs, outputs in zip((784, *widths), widths, strict=False):
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 10, bias=bias))


@pytest.fixture
def train() -> Callable[..., Trained]:
    """Trains a client, and returns what it sends."""
    return trained
