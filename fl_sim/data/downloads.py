"""Data sets that torchvision downloads on first use: MNIST, Fashion-MNIST, CIFAR, Flowers-102.

torchvision fetches, verifies and reads their published files. Every run shares one folder of them:
the option `root`, by default `$FL_SIM_DATA` or else `~/.cache/fl-sim`. Whoever has the archives
already puts them there; what is on the disk isn't downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fl_sim.data.dataset import Dataset, as_pixels
from fl_sim.data.folder import path_of
from fl_sim.data.images import load_image, square
from fl_sim.data.source import Source
from fl_sim.errors import UserError
from fl_sim.seeds import numpy_generator

DEFAULT_ROOT = "~/.cache/fl-sim"


@dataclass(frozen=True)
class _Part:
    """The training or the test images of a data set.

    Args:
        count: how many there are, N.
        pick: indices (n,) in 0..N-1 -> images (n, C, H, W) uint8 and labels (n,) int64.
    """

    count: int
    pick: Callable[[Tensor], tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, images: Tensor, labels: Tensor) -> _Part:
        return cls(len(labels), lambda chosen: (images[chosen], labels[chosen]))


def mnist(
    *,
    root: str | Path | None = None,
    train_examples: int | None = None,
    test_examples: int | None = None,
) -> Dataset:
    """Return MNIST: 60,000 digits for training, 10,000 for testing, 28×28, grey.

    Args:
        root: the folder of all downloads; None: `$FL_SIM_DATA`, or else `~/.cache/fl-sim`.
        train_examples: how many training images to keep, always the same ones; None: all.
        test_examples: how many test images to keep, always the same ones; None: all.

    Raises:
        UserError: the files aren't there and can't be downloaded, one is damaged, or an option is
            out of range.
    """
    return _mnist("MNIST", root, (train_examples, test_examples), tuple("0123456789"))


def fashion_mnist(
    *,
    root: str | Path | None = None,
    train_examples: int | None = None,
    test_examples: int | None = None,
) -> Dataset:
    """Return Fashion-MNIST: 60,000 articles of clothing for training, 10,000 for testing.

    They are 28×28 and grey. Options and errors are those of `mnist`.
    """
    return _mnist("FashionMNIST", root, (train_examples, test_examples))


def cifar10(
    *,
    root: str | Path | None = None,
    train_examples: int | None = None,
    test_examples: int | None = None,
) -> Dataset:
    """Return CIFAR-10: 50,000 colour images for training, 10,000 for testing, 32×32.

    In memory they take 740 MB. Options and errors are those of `mnist`.
    """
    return _cifar("CIFAR10", root, (train_examples, test_examples))


def cifar100(
    *,
    root: str | Path | None = None,
    train_examples: int | None = None,
    test_examples: int | None = None,
) -> Dataset:
    """Return CIFAR-100: 50,000 colour images for training, 10,000 for testing, 32×32.

    The classes are the 100 fine ones. In memory the images take 740 MB. Options and errors are
    those of `mnist`.
    """
    return _cifar("CIFAR100", root, (train_examples, test_examples))


def flowers102(
    *,
    root: str | Path | None = None,
    size: int = 64,
    train_examples: int | None = None,
    test_examples: int | None = None,
) -> Dataset:
    """Return Flowers-102: colour photographs, 2,040 for training, 6,149 for testing.

    The published training and validation parts, 10 images of each class in both, are for training.
    Only the images that are kept are read. Options and errors are those of `mnist`, and

    Args:
        root: see `mnist`.
        size: height and width in pixels, at least 1; the shorter side is resized, the middle kept.
        train_examples: see `mnist`.
        test_examples: see `mnist`.
    """
    from torch.utils.data import ConcatDataset
    from torchvision.datasets import Flowers102

    middle = square(size)
    top = _root(root)
    folder = top / "flowers-102"
    archives = {folder / name: md5 for name, md5 in Flowers102._file_dict.values()}
    tables = {path: md5 for path, md5 in archives.items() if path.suffix == ".mat"}
    source = Source(
        "Flowers-102",
        files={**tables, folder / "jpg": None},
        archives=archives,
        download=lambda: Flowers102(top, download=True),
    )
    train, validation, test = source.read(
        lambda: [
            Flowers102(top, split, transform=middle, loader=load_image)
            for split in ("train", "val", "test")
        ]
    )
    parts = (_files_part(ConcatDataset([train, validation])), _files_part(test))
    return _dataset("flowers102", parts, (train_examples, test_examples), Flowers102.classes)


def _mnist(
    kind: str,
    root: str | Path | None,
    keep: tuple[int | None, int | None],
    classes: tuple[str, ...] | None = None,
) -> Dataset:
    """Build a data set in MNIST's format; `kind` is torchvision's class."""
    from torchvision import datasets

    published = getattr(datasets, kind)
    top = _root(root)
    folder = top / kind / "raw"
    archives = {folder / name: md5 for name, md5 in published.resources}
    source = Source(
        kind,
        files={path.with_suffix(""): None for path in archives},
        archives=archives,
        download=lambda: published(top, download=True),
    )
    source.obtain()
    parts = (_idx_part(folder, "train"), _idx_part(folder, "t10k"))
    return _dataset(kind, parts, keep, classes or published.classes)


def _cifar(kind: str, root: str | Path | None, keep: tuple[int | None, int | None]) -> Dataset:
    """Build a data set in CIFAR's format; `kind` is torchvision's class."""
    from torchvision import datasets
    from torchvision.datasets.utils import download_and_extract_archive

    published = getattr(datasets, kind)
    top = _root(root)
    archive, md5 = published.filename, published.tgz_md5
    batches = [*published.train_list, *published.test_list]
    names = (published.meta["filename"], published.meta["md5"])
    source = Source(
        kind,
        files={top / published.base_folder / name: md5 for name, md5 in [*batches, names]},
        archives={top / archive: md5},
        # The class itself wouldn't notice that only the file of names is missing.
        download=lambda: download_and_extract_archive(
            published.url, top, filename=archive, md5=md5
        ),
    )
    halves = source.read(lambda: [published(top, train=half) for half in (True, False)])
    parts = [
        _Part.of(torch.from_numpy(half.data).permute(0, 3, 1, 2), torch.tensor(half.targets))
        for half in halves
    ]
    return _dataset(kind, (parts[0], parts[1]), keep, halves[0].classes)


def _idx_part(folder: Path, prefix: str) -> _Part:
    """Read two of MNIST's files; torchvision itself wouldn't say which one is damaged."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    image_file = folder / f"{prefix}-images-idx3-ubyte"
    label_file = folder / f"{prefix}-labels-idx1-ubyte"
    images, labels = _idx(image_file, read_image_file), _idx(label_file, read_label_file)
    if len(images) != len(labels):
        raise UserError(
            f"{label_file} must have a label for each of the {len(images)} images in "
            f"{image_file.name}, found {len(labels)}"
        )
    return _Part.of(images[:, None], labels)


def _idx(path: Path, read: Callable[[str], Tensor]) -> Tensor:
    try:
        return read(str(path))
    # The header's magic number, its type and the number of bytes fail in different ways.
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is truncated or not the file of that name; delete it to have it downloaded "
            "again"
        ) from error


def _files_part(examples: Any) -> _Part:
    """Wrap a torchvision data set that reads a file at each access."""

    def pick(chosen: Tensor) -> tuple[Tensor, Tensor]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the GIL
            images, labels = zip(*pool.map(examples.__getitem__, chosen.tolist()), strict=True)
        return torch.stack(images), torch.tensor(labels)

    return _Part(len(examples), pick)


def _dataset(
    name: str,
    parts: tuple[_Part, _Part],
    keep: tuple[int | None, int | None],
    classes: Any,
) -> Dataset:
    """Shuffle both parts, whose files may be sorted by class, and keep the first of each."""
    generator = numpy_generator(0, name)
    kept: list[Tensor] = []
    for key, part, count in zip(("train_examples", "test_examples"), parts, keep, strict=True):
        order = generator.permutation(part.count)[: _checked(key, count, part.count)]
        images, labels = part.pick(torch.from_numpy(order))
        kept += [as_pixels(images), labels]
    return Dataset(kept[0], kept[1], kept[2], kept[3], tuple(classes))


def _checked(key: str, count: int | None, available: int) -> int:
    if count is None:
        return available
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= available:
        raise UserError(f"{key} must be a whole number from 1 to {available}, found {count!r}")
    return count


def _root(root: str | Path | None) -> Path:
    return path_of(os.environ.get("FL_SIM_DATA") or DEFAULT_ROOT if root is None else root)
