"""Victims: real images, augmented labels, networks with and without training, and their leaks."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from attacks import GradientLeak, Knowledge
from defenses.label_smoothing import smooth_labels
from defenses.mixup import mix_halves
from fl_sim.data import Dataset, build_dataset
from fl_sim.models import build_model
from fl_sim.seeds import numpy_generator

SentAs = Literal["float64", "float32", "update"]
AUGMENTATIONS = ("hard", "label-smoothing", "mixup", "mixup+label-smoothing")
SMOOTHING = (0.0, 0.5)
"""The interval from which ε is drawn, uniformly; mixing is drawn from Beta(1, 1)."""


@functools.cache
def dataset(name: str) -> Dataset:
    """Return a data set, read once."""
    return build_dataset(name, options={})


def untrained(
    network: str, data: Dataset, *, classes: int | None = None, bias: bool = False, seed: int = 0
) -> nn.Module:
    """Return a network of `fl_sim.MODELS` for a data set's images, with random weights.

    Args:
        network: its name.
        data: gives the input's shape and statistics.
        classes: K; None: the data set's.
        bias: whether the last layer has one (`fcn4`, `mlp`: all layers).
        seed: of the weights.
    """
    return build_model(
        network,
        options={},
        num_classes=classes or data.num_classes,
        input_shape=data.input_shape,
        bias=bias,
        mean=data.mean,
        std=data.std,
        seed=seed,
    )


def draw_batch(
    data: Dataset, count: int, augmentation: str, *, classes: int | None = None, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw augmented training examples.

    Args:
        data: whose training images are drawn, without repetition while they last.
        count: B.
        augmentation: one of `AUGMENTATIONS`.
        classes: K; None: the data set's. Another K than its own gets classes drawn at random.
        seed: of all draws.

    Returns:
        Images (B, C, H, W) and labels (B, K), both float32.
    """
    draws = numpy_generator(seed, "victims", augmentation)
    indices = np.resize(draws.permutation(len(data.images)), 2 * count)
    images, hard = data.images[indices], data.labels[indices]
    if classes not in (None, data.num_classes):
        hard = torch.from_numpy(draws.integers(classes, size=2 * count))
    return augment(images, one_hot(hard, classes or data.num_classes).double(), augmentation, draws)


def augment(
    images: Tensor, labels: Tensor, augmentation: str, draws: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Turn 2B examples into B augmented ones.

    Args:
        images: (2B, C, H, W).
        labels: (2B, K) float64.
        augmentation: one of `AUGMENTATIONS`.
        draws: gives ε for each example, and the shares of a pair.

    Returns:
        Images (B, C, H, W) and labels (B, K), both float32.
    """
    if augmentation not in AUGMENTATIONS:
        raise ValueError(f"augmentation must be one of {AUGMENTATIONS}, found {augmentation!r}")
    count = len(images) // 2
    mixing = torch.from_numpy(draws.beta(1, 1, count))
    smoothing = torch.from_numpy(draws.uniform(*SMOOTHING, (count, 1)))
    if "mixup" in augmentation:
        images, labels = mix_halves(images, mixing), mix_halves(labels, mixing)
    else:
        images, labels = images[:count], labels[:count]
    if "smoothing" in augmentation:
        labels = smooth_labels(labels, smoothing)
    return images.float(), labels.float()


def leak_of(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    sent_as: SentAs = "float32",
    lr: float = 0.1,
    told: bool = True,
    knowledge: Knowledge | None = None,
) -> GradientLeak:
    """Return what a server sees of one SGD step on a batch.

    Args:
        model: the network, float32.
        images: (B, C, H, W), pixels in [0, 1].
        labels: (B, K).
        sent_as: a "float64" gradient of the network in float64, a "float32" gradient, or an
            "update": float32 weights after a step at `lr`.
        lr: of an update.
        told: whether the server knows B.
        knowledge: what it knows of the defenses.
    """
    dtype = torch.float64 if sent_as == "float64" else torch.float32
    model = model.to(dtype)
    parameters = dict(model.named_parameters())
    loss = cross_entropy(model(images.to(dtype)), labels.to(dtype))
    computed = torch.autograd.grad(loss, list(parameters.values()))
    gradients = dict(zip(parameters, (g.detach() for g in computed), strict=True))
    if sent_as == "update":
        for name, weight in parameters.items():
            sent = weight.detach() - lr * gradients[name]
            gradients[name] = (weight.detach().double() - sent.double()) / lr
    return GradientLeak(
        model,
        gradients,
        batch_size=len(images) if told else None,
        input_shape=(images.shape[1], images.shape[2], images.shape[3]),
        lr=lr if sent_as == "update" else None,
        update_dtype=torch.float32 if sent_as == "update" else None,
        knowledge=knowledge or Knowledge(),
    )
