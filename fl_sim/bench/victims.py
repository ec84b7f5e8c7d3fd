"""Victims: real images, augmented labels, and networks without training."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from defenses.label_smoothing import smooth_labels
from defenses.mixup import mix_halves
from fl_sim.data import Dataset, build_dataset
from fl_sim.models import Normalize, build_model
from fl_sim.seeds import numpy_generator

AUGMENTATIONS = ("hard", "label-smoothing", "mixup", "mixup+label-smoothing")
SMOOTHING = (0.0, 0.5)
"""The interval from which ε is drawn, uniformly; mixing is drawn from Beta(1, 1)."""
INIT: Mapping[str, str] = {
    "fcn4": "he",
    "mlp": "he",
    "lenet": "dlg",
    "convnet": "default",
    "resnet18": "default",
}
"""The initialisation of each network in the tables, unless they say another."""
_WEIGHTS = {
    "fcn4": "He's (biases 0)",
    "mlp": "He's (biases 0)",
    "lenet": "DLG's (uniform in ±0.5)",
    "convnet": "PyTorch's",
    "resnet18": "torchvision's",
}
INITS = (
    "`init` says how initial weights were drawn: “default” as PyTorch does (`resnet18`: as "
    "torchvision does), “he” as He et al. (biases 0), “dlg” as in DLG (uniform in ±0.5)."
)
"""The note of tables that have such a column."""


def inits(network: str) -> tuple[str, ...]:
    """Return the initialisations on which tables show a network: PyTorch's, and its other one."""
    return tuple(dict.fromkeys(("default", INIT[network])))


def initial_weights(*networks: str) -> str:
    """Return the note that says how networks, names in `INIT`, are initialised."""
    listed = ", ".join(f"{_WEIGHTS[network]} in `{network}`" for network in networks)
    return f"Initial weights are {listed}."


@functools.cache
def dataset(name: str) -> Dataset:
    """Return a data set, read once."""
    return build_dataset(name, options={})


def untrained(
    network: str,
    data: Dataset,
    *,
    classes: int | None = None,
    bias: bool = False,
    seed: int = 0,
    init: str | None = None,
) -> nn.Module:
    """Return a network of `fl_sim.MODELS` for a data set's images, with random weights.

    Args:
        network: its name.
        data: gives the input's shape and statistics.
        classes: K; None: the data set's.
        bias: whether the last layer has one (`fcn4`, `mlp`: all layers).
        seed: of the weights.
        init: how they are drawn; None: as in `INIT`, "default" for networks that aren't there.
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
        init=init or INIT.get(network, "default"),
    )


def linear_chain(
    widths: Sequence[int], *, bias: bool, is_he: bool, mean: Sequence[float], std: Sequence[float]
) -> nn.Sequential:
    """Return linear layers with ReLU between them, on normalised pixels.

    Args:
        widths: of the input, the hidden layers and the output.
        bias: whether the layers have biases, drawn as PyTorch does.
        is_he: whether weights are drawn as by He, or else as PyTorch does.
        mean: of each channel.
        std: of each channel.
    """
    layers: list[nn.Module] = [Normalize(mean, std), nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        linear = nn.Linear(inputs, outputs, bias=bias)
        if is_he:
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


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
