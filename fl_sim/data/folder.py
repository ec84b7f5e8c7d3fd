"""A folder of images."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from fl_sim.data.dataset import Dataset, as_pixels, stratified
from fl_sim.data.images import Transform, load_image, square
from fl_sim.errors import UserError

logger = logging.getLogger(__name__)
TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation", "dev", "eval")
"""Folders' names that tell a split, the preferred ones first."""
FOLD = re.compile(r"(fold|split|part)[ _-]?\d+|k?\d+[ _-]?fold|holdout|unlabell?ed")


def image_folder(*, root: str | Path, size: int = 32) -> Dataset:
    """Read a folder that has one sub-folder of images for each class.

    Images become RGB, their shorter side is resized to `size`, and the middle is kept. Of each
    class, a fixed fifth (at least one image) is for testing. A folder that is split already, as in
    root/train/<class> and root/test/<class> (or val, valid), keeps its split.

    Args:
        root: the folder.
        size: height and width in pixels, at least 1.

    Files and folders whose names start with a dot aren't looked at.

    Raises:
        UserError: the folder is missing or has fewer than two class folders, a class has fewer
            than two images (one, where it is split already), its sub-folders are folds or parts
            without classes, or an image can't be read.
    """
    transform = square(size)
    root = path_of(root)
    if not root.is_dir():
        raise UserError(f"image folder {root} doesn't exist or isn't a folder")
    split = _split_of(root)
    if split is None:
        images, labels, classes = _read(root, transform, classes=2, images=2)
        return stratified(images, labels, classes, "image-folder")
    train, test = split
    images, labels, classes = _read(train, transform, classes=2, images=1)
    test_images, test_labels, test_classes = _read(test, transform, classes=1, images=0)
    unknown = sorted(set(test_classes) - set(classes))
    if unknown:
        raise UserError(f"class folder {test / unknown[0]} has no counterpart in {train}")
    own = torch.tensor([classes.index(name) for name in test_classes])
    return Dataset(images, labels, test_images, own[test_labels], classes)


def path_of(root: str | Path) -> Path:
    """Return the option `root` as a path, `~` expanded.

    Raises:
        UserError: it isn't a path.
    """
    if not isinstance(root, str | Path):
        raise UserError(f"root must be a path, found {root!r}")
    return Path(root).expanduser()


def _split_of(root: Path) -> tuple[Path, Path] | None:
    """Return the folders for training and testing, where the sub-folders are a split's.

    Raises:
        UserError: they are folds, one part is missing or has no classes: nothing says which to
            take.
    """
    folders = _folders(root)
    named = {f.name.lower(): f for f in folders if _is_part(f.name.lower())}
    if len(named) < len(folders):  # a class may be called like a part
        named = {name: f for name, f in named.items() if _folders(f) and not _images(f)}
    if not named:
        return None
    train, test = (next((named[n] for n in known if n in named), None) for known in (TRAIN, TEST))
    if train is None or test is None:
        found = ", ".join(folder.name for folder in named.values())
        raise UserError(
            f"image folder {root} holds parts of a data set ({found}), not classes; name one of "
            f"them, as in {next(iter(named.values()))}"
        )
    for part, other in ((train, test), (test, train)):
        if not _folders(part):
            raise UserError(
                f"image folder {root} is split, and its part {part} has no class folders; name a "
                f"part that has, as in {other}"
            )
    left = [folder.name for folder in folders if folder not in (train, test)]
    if left:
        logger.warning("of %s, %s and %s are read, %s not", root, train.name, test.name, left)
    return train, test


def _is_part(name: str) -> bool:
    return name in TRAIN + TEST or FOLD.fullmatch(name) is not None


def _read(
    root: Path, transform: Transform, *, classes: int, images: int
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Read a folder of class folders.

    Args:
        root: the folder.
        transform: from an image to its tensor.
        classes: that it must have.
        images: that a class must have.

    Returns:
        Pixels (N, 3, H, W) float32, labels (N,) int64, and the classes' names.
    """
    # Takes two seconds to import.
    from torchvision.datasets.folder import make_dataset

    names = [folder.name for folder in _folders(root)]
    if len(names) < classes:
        least = "1 class folder" if classes == 1 else f"{classes} class folders"
        raise UserError(f"image folder {root} must have at least {least}, found {len(names)}")
    indices = {name: index for index, name in enumerate(names)}
    samples = make_dataset(root, indices, is_valid_file=_is_image, allow_empty=True)
    counts = Counter(index for _, index in samples)
    for name, index in indices.items():
        if counts[index] < images:
            least = "1 image" if images == 1 else f"{images} images"
            raise UserError(
                f"class folder {root / name} must have at least {least}, found {counts[index]}"
            )
    _tell_of_others(root, {Path(path) for path, _ in samples})
    tensors = [transform(load_image(path)) for path, _ in samples]
    if not tensors:
        raise UserError(f"image folder {root} must hold images, found none")
    pixels = torch.stack([as_pixels(t) if t.dtype == torch.uint8 else t for t in tensors])
    return pixels, torch.tensor([index for _, index in samples]), tuple(names)


def _tell_of_others(root: Path, read: set[Path]) -> None:
    """Warn of files that aren't read: no images by their names, or outside the class folders."""
    files = {p for p in root.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(root))}
    others = Counter(path.suffix.lower() or "no ending" for path in files - read)
    if others:
        kinds = ", ".join(f"{count} of {ending}" for ending, count in sorted(others.items()))
        logger.warning(
            "in %s, files that aren't images in class folders are left out: %s", root, kinds
        )


def _is_image(path: str) -> bool:
    from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

    name = Path(path).name
    return not name.startswith(".") and has_file_allowed_extension(name, IMG_EXTENSIONS)


def _is_hidden(path: Path) -> bool:
    """Say whether a path, or a folder on it, is one that systems keep for themselves."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not _is_hidden(Path(p.name)))


def _images(root: Path) -> list[Path]:
    return [p for p in root.iterdir() if p.is_file() and _is_image(p.name)]
