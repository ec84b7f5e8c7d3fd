"""Small data sets in the published formats, and a server for them.

torchvision compares files with the published MD5 sums. The tests tell it the sums of their own
files, and a loopback address in place of the publishers': all else is what runs in earnest.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

TRAIN, TEST = 10, 4
CLOSED_PORT = "http://127.0.0.1:9/"  # "discard": privileged, and served by nobody
Labelled = dict[bytes, int]


@dataclass(frozen=True)
class Published:
    """A data set as its publisher has it.

    Args:
        archives: file name -> content.
        folder: where they belong, below the root.
        classes: the class names.
        train: for each training image its bytes, (C, H, W) uint8, and its label.
        test: likewise.
        at: has torchvision fetch from an address.
    """

    archives: dict[str, bytes]
    folder: str
    classes: tuple[str, ...]
    train: Labelled
    test: Labelled
    at: Callable[[str], None]

    def place(self, root: Path) -> Path:
        """Put the archives where a user would."""
        folder = root / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.archives.items():
            (folder / name).write_bytes(content)
        return folder

    def go_offline(self) -> None:
        """Have torchvision fetch from where nobody answers."""
        self.at(CLOSED_PORT)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def labelled(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Labelled:
    return {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}


def idx(array: NDArray[np.uint8]) -> bytes:
    """Write MNIST's format: 08 for bytes, the number of dimensions, their sizes, the bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def publish_mnist(patch: pytest.MonkeyPatch, kind: str, classes: tuple[str, ...]) -> Published:
    random = np.random.default_rng(0)
    archives, parts = {}, []
    for prefix, count in (("train", TRAIN), ("t10k", TEST)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = random.permutation(10)[:count].astype(np.uint8)
        archives[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(idx(images))
        archives[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(idx(labels))
        parts.append(labelled(images, labels))
    published = getattr(datasets, kind)
    resources = [(name, md5(content)) for name, content in archives.items()]
    patch.setattr(published, "resources", resources)
    at = lambda address: patch.setattr(published, "mirrors", [address])  # noqa: E731
    return Published(archives, f"{kind}/raw", classes, *parts, at)


def python2_pickle(content: dict[str, Any]) -> bytes:
    """Pickle as Python 2 and NumPy 1 did, in whose words CIFAR's files are written."""
    modern = pickle.dumps(content, protocol=2)
    old = modern.replace(b"cnumpy._core.", b"cnumpy.core.")
    return old.replace(b"\x89\x88\x87", b"K\x00K\x01\x87")  # (False, True) as (0, 1)


def tgz(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def publish_cifar(patch: pytest.MonkeyPatch, kind: str) -> Published:
    published = getattr(datasets, kind)
    random = np.random.default_rng(1)
    key, count = ("labels", 10) if kind == "CIFAR10" else ("fine_labels", 100)
    classes = tuple(f"class {index}" for index in range(count))
    files, parts = {}, []
    for table, total in (("train_list", TRAIN), ("test_list", TEST)):
        part: Labelled = {}
        entries = getattr(published, table)
        for name, _ in entries:
            rows = random.integers(0, 256, (total // len(entries), 3072), dtype=np.uint8)
            labels = random.integers(0, count, len(rows))
            batch = {"data": rows, key: labels.tolist(), "coarse_labels": [0] * len(rows)}
            files[name] = python2_pickle(batch)
            part |= labelled(rows, labels)
        parts.append(part)
        sums = [[name, md5(files[name])] for name, _ in entries]
        patch.setattr(published, table, sums)
    meta = published.meta["filename"]
    files[meta] = python2_pickle({published.meta["key"]: list(classes)})
    patch.setattr(published, "meta", {**published.meta, "md5": md5(files[meta])})
    archive = tgz({f"{published.base_folder}/{name}": text for name, text in files.items()})
    patch.setattr(published, "tgz_md5", md5(archive))
    at = lambda address: patch.setattr(published, "url", address + published.filename)  # noqa: E731
    return Published({published.filename: archive}, "", classes, *parts, at)


def flower(label: int) -> bytes:
    """Return a JPEG of 40×20: its middle square in a colour of the class, white beside it."""
    pixels = np.full((20, 40, 3), 255, dtype=np.uint8)
    pixels[:, 10:30] = (20 * label, 100, 10)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def mat(**variables: Any) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, variables)
    return buffer.getvalue()


def publish_flowers(patch: pytest.MonkeyPatch) -> Published:
    published = datasets.Flowers102
    labels = np.arange(TRAIN + TEST) % 5
    files = {f"jpg/image_{i:05d}.jpg": flower(k) for i, k in enumerate(labels, start=1)}
    ids = np.arange(1, TRAIN + TEST + 1)
    archives = {
        "102flowers.tgz": tgz(files),
        "imagelabels.mat": mat(labels=labels + 1),
        "setid.mat": mat(trnid=ids[:5], valid=ids[5:TRAIN], tstid=ids[TRAIN:]),
    }
    sums = zip(("image", "label", "setid"), archives.items(), strict=True)
    patch.setattr(published, "_file_dict", {k: (name, md5(text)) for k, (name, text) in sums})
    at = partial(patch.setattr, published, "_download_url_prefix")
    return Published(archives, "flowers-102", tuple(published.classes), {}, {}, at)


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Published]:
    """Return a function from a data set's name to small files of it; nobody serves them yet."""
    monkeypatch.setenv("no_proxy", "*")
    clothes = tuple(datasets.FashionMNIST.classes)
    publishers = {
        "mnist": partial(publish_mnist, monkeypatch, "MNIST", tuple("0123456789")),
        "fashion-mnist": partial(publish_mnist, monkeypatch, "FashionMNIST", clothes),
        "cifar10": partial(publish_cifar, monkeypatch, "CIFAR10"),
        "cifar100": partial(publish_cifar, monkeypatch, "CIFAR100"),
        "flowers102": partial(publish_flowers, monkeypatch),
    }

    def offline(name: str) -> Published:
        published = publishers[name]()
        published.go_offline()
        return published

    return offline


@dataclass(frozen=True)
class Server:
    """A server on this machine: its files, its address, and what was fetched from it."""

    folder: Path
    address: str
    fetched: list[str]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, fetched = tmp_path_factory.mktemp("server"), []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_request(self, *args: Any) -> None:
            fetched.append(self.path.strip("/"))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Server(folder, f"http://127.0.0.1:{http.server_port}/", fetched)
        http.shutdown()
        thread.join()
