"""A folder of images, and how single image files are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fl_sim.data.dataset import Dataset, as_pixels, stratified
from fl_sim.errors import UserError


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

    middle = square(size)
    root = path_of(root)
    if not root.is_dir():
        raise UserError(f"image folder {root} doesn't exist or isn't a folder")
    classes = sum(entry.is_dir() for entry in root.iterdir())
    if classes < 2:
        raise UserError(f"image folder {root} must have at least 2 class folders, found {classes}")
    folder = ImageFolder(str(root), middle, loader=load_image, allow_empty=True)
    counts = np.bincount(folder.targets, minlength=classes)
    for name, count in zip(folder.classes, counts, strict=True):
        if count < 2:
            raise UserError(
                f"class folder {root / name} must have at least 2 images, found {count}"
            )
    images = as_pixels(torch.stack([folder[index][0] for index in range(len(folder))]))
    return stratified(images, torch.tensor(folder.targets), tuple(folder.classes), "image-folder")


def path_of(root: str | Path) -> Path:
    """Return the option `root` as a path, `~` expanded.

    Raises:
        UserError: it isn't a path.
    """
    if not isinstance(root, str | Path):
        raise UserError(f"root must be a path, found {root!r}")
    return Path(root).expanduser()


def square(size: int) -> Callable[[Image.Image], Tensor]:
    """Return a function that makes an image's middle square (3, size, size) uint8.

    The shorter side is resized to `size` pixels, with antialiasing.

    Raises:
        UserError: the size isn't a whole number above 0.
    """
    from torchvision.transforms import v2

    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"size must be a whole number of pixels above 0, found {size!r}")
    transform: Callable[[Image.Image], Tensor] = v2.Compose(
        [v2.Resize(size, antialias=True), v2.CenterCrop(size), _to_tensor]
    )
    return transform


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def load_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB.

    Raises:
        UserError: it is missing, damaged or not an image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"image {path} is missing") from error
    # Pillow raises any of these on a damaged file.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"image {path} can't be read: truncated, damaged or not an image"
        ) from error
