"""What a data set is.

A data set is held in memory as pixels in [0, 1]; a model normalises them in its first layer.
Splits, crops and orders are fixed: they are the same in every run, whatever its seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fl_sim
from fl_sim.errors import UserError
from fl_sim.seeds import numpy_generator

TEST_FRACTION = 0.2
# Bounds the float64 copies that statistics are computed on.
IMAGES_AT_ONCE = 1000


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels for training and testing, checked when they are put together.

    Args:
        images: (N, C, H, W) float32, pixels in [0, 1].
        labels: (N,) int64, in 0..K-1.
        test_images: (M, C, H, W) float32, pixels in [0, 1].
        test_labels: (M,) int64, in 0..K-1.
        classes: the K class names, K at least 2.
        mean: of each channel, in [0, 1]; computed from `images` when left out.
        std: of each channel, above 0; computed from `images` when left out, and 1 for a channel
            that is constant.

    Raises:
        ValueError: a shape, a type or a range is wrong, or there is no image.
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"a data set needs at least 2 classes, found {self.num_classes}")
        _check_part("", self.images, self.labels, self.num_classes)
        _check_part("test_", self.test_images, self.test_labels, self.num_classes)
        if self.test_images.shape[1:] != self.images.shape[1:]:
            raise ValueError(
                f"test_images must have the shape of images, {self.input_shape}, found "
                f"{tuple(self.test_images.shape[1:])}"
            )
        mean, std = _channel_statistics(self.images)
        object.__setattr__(self, "mean", self.mean or mean)
        object.__setattr__(self, "std", self.std or std)
        if not len(self.mean) == len(self.std) == self.images.shape[1]:
            raise ValueError(
                f"mean and std must have one value for each of {self.images.shape[1]} channels, "
                f"found {len(self.mean)} and {len(self.std)}"
            )
        if not (np.isfinite([*self.mean, *self.std]).all() and min(self.std) > 0):
            raise ValueError(
                f"mean must be finite and std finite and above 0, found {self.mean} and {self.std}"
            )

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width


def _check_part(prefix: str, images: Tensor, labels: Tensor, num_classes: int) -> None:
    if images.ndim != 4 or images.dtype != torch.float32 or images.numel() == 0:
        raise ValueError(
            f"{prefix}images must be a (N, C, H, W) float32 tensor with at least one image, found "
            f"{tuple(images.shape)} {images.dtype}"
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"{prefix}labels must be a ({len(images)},) int64 tensor, one label for each image, "
            f"found {tuple(labels.shape)} {labels.dtype}"
        )
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):  # also true of NaN
        raise ValueError(
            f"{prefix}images must be finite, in [0, 1], found values from {low} to {high}"
        )
    first, last = int(labels.min()), int(labels.max())
    if first < 0 or last >= num_classes:
        raise ValueError(f"{prefix}labels must be in 0..{num_classes - 1}, found {first} to {last}")


def _channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    pixels = images[:, 0].numel()
    starts = range(0, len(images), IMAGES_AT_ONCE)
    parts = [images[start : start + IMAGES_AT_ONCE] for start in starts]
    totals = [part.double().sum(dim=(0, 2, 3)) for part in parts]
    mean = torch.stack(totals).sum(dim=0) / pixels
    centre = mean[:, None, None]
    squares = [(part.double() - centre).square().sum(dim=(0, 2, 3)) for part in parts]
    std = (torch.stack(squares).sum(dim=0) / pixels).sqrt()
    return tuple(mean.tolist()), tuple(torch.where(std > 1e-6, std, 1.0).tolist())


def build_dataset(name: str, *, options: Mapping[str, Any]) -> Dataset:
    """Build a data set by its name in `fl_sim.DATASETS`, or by `module:attr`.

    Raises:
        UserError: the name is unknown, an option is wrong, or the result isn't a `Dataset`.
    """
    try:
        dataset = fl_sim.DATASETS.build(name, **options)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not isinstance(dataset, Dataset):
        raise UserError(
            f"dataset {name!r} must return a fl_sim.data.Dataset, found {type(dataset).__name__}"
        )
    return dataset


def as_pixels(images: Tensor) -> Tensor:
    """Turn uint8 images of any shape into float32 pixels in [0, 1]."""
    return images.float().div_(255)


def stratified(images: Tensor, labels: Tensor, classes: tuple[str, ...], name: str) -> Dataset:
    """Put a fifth of each class, at least one image, aside for testing; shuffle both parts.

    Args:
        images: (N, C, H, W) float32, pixels in [0, 1].
        labels: (N,) int64, in 0..K-1, each at least twice.
        classes: the K class names.
        name: the data set's; it names the draw.
    """
    generator = numpy_generator(0, name)
    train: list[NDArray[np.intp]] = []
    test: list[NDArray[np.intp]] = []
    for label in range(len(classes)):
        members = generator.permutation(np.flatnonzero(labels.numpy() == label))
        count = max(1, round(len(members) * TEST_FRACTION))
        test.append(members[:count])
        train.append(members[count:])
    kept, held_out = (
        torch.from_numpy(generator.permutation(np.concatenate(part))) for part in (train, test)
    )
    return Dataset(
        images=images[kept],
        labels=labels[kept],
        test_images=images[held_out],
        test_labels=labels[held_out],
        classes=classes,
    )
