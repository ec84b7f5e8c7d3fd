"""Networks trained on augmented examples, for benchmarks; trained once and kept on the disk."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from fl_sim.bench.victims import INIT, augment, dataset, untrained
from fl_sim.data import Dataset
from fl_sim.data.downloads import DEFAULT_ROOT
from fl_sim.seeds import numpy_generator

TARGET = 0.9
"""Accuracy on the test images at which a network counts as trained."""
BATCH, CHECK_EVERY, MOST_STEPS = 64, 25, 4000
RATES = {"lenet": 5e-3}
"""Adam's learning rate where it isn't 1e-3."""


def trained(
    network: str,
    data_name: str,
    augmentation: str,
    *,
    bias: bool = False,
    seed: int = 0,
    init: str | None = None,
) -> tuple[nn.Module, float]:
    """Return a network trained to an accuracy of at least `TARGET`, and its accuracy.

    Adam on batches of 64, augmented as the clients' will be, until the test accuracy is reached;
    batch norm stays in eval mode. Trained networks are kept under `$FL_SIM_DATA`, or else
    `~/.cache/fl-sim`, in `bench/`.

    Args:
        network: a name in `fl_sim.MODELS`.
        data_name: a name in `fl_sim.DATASETS`.
        augmentation: one of `fl_sim.bench.victims.AUGMENTATIONS`.
        bias: whether the last layer has one.
        seed: of weights and draws.
        init: how the weights are drawn that it starts from; None: as in `INIT`.

    Raises:
        RuntimeError: the accuracy isn't reached within `MOST_STEPS` steps.
    """
    data = dataset(data_name)
    init = init or INIT.get(network, "default")
    model = untrained(network, data, bias=bias, seed=seed, init=init)
    file = _file(network, data_name, augmentation, bias, seed, init)
    if file.exists():
        model.load_state_dict(load_file(file))
        return model, accuracy(model, data)
    rate = RATES.get(network, 1e-3)
    reached = train(model, data, augmentation, learning_rate=rate, seed=seed)
    if reached < TARGET:
        raise RuntimeError(
            f"{network} on {data_name} with {augmentation} reached an accuracy of {reached:.3f} in "
            f"{MOST_STEPS} steps, less than {TARGET}"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(f".{os.getpid()}.tmp")
    save_file(model.state_dict(), beside)
    os.replace(beside, file)
    return model, reached


@torch.no_grad()
def accuracy(model: nn.Module, data: Dataset) -> float:
    """Return the accuracy on the (first 1,000) test images."""
    images, labels = data.test_images[:1000], data.test_labels[:1000]
    guesses = [model(images[start : start + 250]) for start in range(0, len(images), 250)]
    return float((torch.cat(guesses).argmax(dim=1) == labels).double().mean())


def train(
    model: nn.Module,
    data: Dataset,
    augmentation: str,
    *,
    learning_rate: float = 1e-3,
    seed: int,
    target: float = TARGET,
) -> float:
    """Train a network in place by Adam on batches of 64; return its accuracy.

    Args:
        model: the network.
        data: gives the images.
        augmentation: one of `fl_sim.bench.victims.AUGMENTATIONS`.
        learning_rate: Adam's.
        seed: of the draws.
        target: accuracy at which it ends, or else after `MOST_STEPS` steps.
    """
    draws = numpy_generator(seed, "training", augmentation)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    reached = 0.0
    for step in range(1, MOST_STEPS + 1):
        _take_step(model, optimizer, data, augmentation, BATCH, data.num_classes, draws)
        if step % CHECK_EVERY == 0:
            reached = accuracy(model, data)
            if reached >= target:
                break
    return reached


def take_steps(
    model: nn.Module,
    data: Dataset,
    steps: int,
    *,
    batch: int,
    classes: int,
    learning_rate: float,
    draws: np.random.Generator,
) -> None:
    """Train a network in place, in the mode that it is in, by Adam on smoothed labels.

    Args:
        model: the network.
        data: gives the images.
        steps: of Adam.
        batch: examples of a step.
        classes: K, at least the data set's.
        learning_rate: Adam's.
        draws: of the examples and of what is done to them.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        _take_step(model, optimizer, data, "label-smoothing", batch, classes, draws)
    model.zero_grad()


def _take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Dataset,
    augmentation: str,
    batch: int,
    classes: int,
    draws: np.random.Generator,
) -> None:
    chosen = torch.from_numpy(draws.integers(len(data.images), size=2 * batch))
    hard = one_hot(data.labels[chosen], classes).double()
    images, labels = augment(data.images[chosen], hard, augmentation, draws)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(cross_entropy(model(images), labels), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def _file(
    network: str, data_name: str, augmentation: str, bias: bool, seed: int, init: str
) -> Path:
    recipe = [network, data_name, augmentation, bias, seed, init, BATCH, CHECK_EVERY, RATES, TARGET]
    name = hashlib.sha256(json.dumps([*recipe, version("torch")]).encode()).hexdigest()[:16]
    root = Path(os.environ.get("FL_SIM_DATA") or DEFAULT_ROOT).expanduser()
    return root / "bench" / f"{network}-{name}.safetensors"
