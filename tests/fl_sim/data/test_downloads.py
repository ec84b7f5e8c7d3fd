"""Tests of the downloaded data sets, on small files in the published formats."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_sim.data import Dataset, build_dataset, source
from fl_sim.errors import UserError

NAMES = ("mnist", "fashion-mnist", "cifar10", "cifar100", "flowers102")
Publish = Callable[[str], Any]


def build(name: str, root: Path, **options: Any) -> Dataset:
    return build_dataset(name, options={"root": str(root), **options})


def content(images: torch.Tensor, labels: torch.Tensor) -> dict[bytes, int]:
    """Map each image's bytes to its label."""
    pixels = (images * 255).round().byte().numpy()
    return {image.tobytes(): int(k) for image, k in zip(pixels, labels, strict=True)}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_downloaded_on_first_use_with_a_progress_bar(
    name: str,
    publish: Publish,
    server: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    published = publish(name)
    for file, archive in published.archives.items():
        (server.folder / file).write_bytes(archive)
    published.at(server.address)
    first = build(name, tmp_path / "new")
    assert set(server.fetched) == set(published.archives)
    assert capsys.readouterr().err.count("100%|") == len(published.archives)
    published.go_offline()
    again = build(name, tmp_path / "new")
    assert torch.equal(first.images, again.images)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", NAMES[:4])
def test_every_image_keeps_its_label_and_its_part(
    name: str, publish: Publish, tmp_path: Path
) -> None:
    published = publish(name)
    published.place(tmp_path)
    dataset = build(name, tmp_path)
    assert dataset.input_shape == ((1, 28, 28) if "mnist" in name else (3, 32, 32))
    assert dataset.classes == published.classes
    assert content(dataset.images, dataset.labels) == published.train
    assert content(dataset.test_images, dataset.test_labels) == published.test


@pytest.mark.parametrize("size", [64, 10])
def test_flowers_are_resized_and_their_middle_kept(
    size: int, publish: Publish, tmp_path: Path
) -> None:
    published = publish("flowers102")
    published.place(tmp_path)
    dataset = build("flowers102", tmp_path, **({} if size == 64 else {"size": size}))
    assert dataset.input_shape == (3, size, size)
    assert dataset.classes == published.classes and len(published.classes) == 102
    assert dataset.labels.bincount().tolist() == [2] * 5  # two of each class for training
    assert sorted(dataset.test_labels.tolist()) == [0, 1, 2, 3]
    border = size // 5  # where resizing and JPEG mix the white in
    middle = dataset.images[:, :, border:-border, border:-border] * 255
    levels = torch.tensor([[20.0 * label, 100, 10] for label in dataset.labels])
    expected = levels[:, :, None, None].expand_as(middle)
    # JPEG at quality 95 rounds luma and chroma to a few of 255 levels.
    torch.testing.assert_close(middle, expected, atol=6, rtol=0)


@pytest.mark.parametrize("name", ["mnist", "cifar100", "flowers102"])
def test_fewer_images_are_the_first_of_all(name: str, publish: Publish, tmp_path: Path) -> None:
    publish(name).place(tmp_path)
    everything = build(name, tmp_path)
    some = build(name, tmp_path, train_examples=6, test_examples=1)
    assert torch.equal(some.images, everything.images[:6])
    assert torch.equal(some.labels, everything.labels[:6])
    assert torch.equal(some.test_images, everything.test_images[:1])


def test_parts_are_shuffled(publish: Publish, tmp_path: Path) -> None:
    publish("flowers102").place(tmp_path)
    dataset = build("flowers102", tmp_path)
    assert dataset.labels.tolist() != [0, 1, 2, 3, 4] * 2


@pytest.mark.parametrize("variable", ["FL_SIM_DATA", "HOME"])
def test_the_default_folder(
    variable: str,
    publish: Publish,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FL_SIM_DATA", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    publish("mnist").place(tmp_path if variable == "FL_SIM_DATA" else tmp_path / ".cache/fl-sim")
    assert len(build_dataset("mnist", options={}).images) == 10


@pytest.mark.parametrize("name", NAMES)
def test_offline_is_one_sentence(name: str, publish: Publish, tmp_path: Path) -> None:
    published = publish(name)
    with pytest.raises(UserError) as caught:
        build(name, tmp_path)
    sentence = str(caught.value)
    assert str(tmp_path / published.folder) in sentence and "\n" not in sentence
    assert "can't be downloaded" in sentence and "Connection refused" in sentence
    assert "connect to the internet, or put" in sentence
    assert all(file in sentence for file in published.archives)


@pytest.mark.parametrize("name", NAMES)
def test_offline_names_the_archive_that_is_truncated(
    name: str, publish: Publish, tmp_path: Path
) -> None:
    published = publish(name)
    file, archive = next(iter(published.archives.items()))
    (published.place(tmp_path) / file).write_bytes(archive[:-9])
    with pytest.raises(UserError, match=f"{file} there is truncated or another file, and can't be"):
        build(name, tmp_path)


def test_a_server_that_sends_something_else_is_one_sentence(
    publish: Publish, server: Any, tmp_path: Path
) -> None:
    published = publish("cifar10")
    (server.folder / "cifar-10-python.tar.gz").write_text("<html>Please log in.</html>")
    published.at(server.address)
    with pytest.raises(UserError, match=r"python\.tar\.gz there is truncated or another file"):
        build("cifar10", tmp_path)


def test_a_server_that_says_nothing_is_one_sentence(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "SILENCE_SECONDS", 0.1)
    with source.socket.create_server(("127.0.0.1", 0)) as silent:
        publish("mnist").at(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with pytest.raises(UserError, match="timed out"):
            build("mnist", tmp_path)
    assert source.socket.getdefaulttimeout() is None


def test_a_folder_that_cannot_be_made_is_one_sentence(publish: Publish, tmp_path: Path) -> None:
    publish("cifar10")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"CIFAR10 isn't in .*file.* and can't be downloaded"):
        build("cifar10", tmp_path / "file" / "data")


def test_two_at_a_time_download_once(publish: Publish, server: Any, tmp_path: Path) -> None:
    published = publish("cifar10")
    for file, archive in published.archives.items():
        (server.folder / file).write_bytes(archive)
    published.at(server.address)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: build("cifar10", tmp_path), range(2))
    assert torch.equal(one.images, other.images)
    # torchvision asks for the address, then for the content.
    assert server.fetched == ["cifar-10-python.tar.gz"] * 2


IDX = "MNIST/raw/"
DAMAGE = [
    ("mnist", IDX + "train-images-idx3-ubyte", lambda content: b""),
    ("mnist", IDX + "train-images-idx3-ubyte", lambda content: content[:12]),
    ("mnist", IDX + "train-images-idx3-ubyte", lambda content: content[:-1]),
    ("mnist", IDX + "train-labels-idx1-ubyte", lambda content: content + b"\0"),
    ("mnist", IDX + "t10k-images-idx3-ubyte", lambda content: b"\0\0\x08\1\0\0\0\4" + bytes(4)),
    ("mnist", IDX + "t10k-labels-idx1-ubyte", lambda content: b"<html>no</html>"),
    ("mnist", IDX + "t10k-labels-idx1-ubyte", gzip.compress),
    ("mnist", IDX + "t10k-labels-idx1-ubyte", lambda content: b"\0\0\x0d\1" + content[4:]),
    ("cifar10", "cifar-10-batches-py/data_batch_3", lambda content: content[:-1]),
    ("cifar10", "cifar-10-batches-py/batches.meta", lambda content: b""),
    ("cifar100", "cifar-100-python/test", lambda content: b"cos\nsystem\n(S'true'\ntR."),
    ("flowers102", "flowers-102/setid.mat", lambda content: content[:200]),
    ("flowers102", "flowers-102/imagelabels.mat", lambda content: content[:-1] + b"!"),
    ("flowers102", "flowers-102/jpg/image_00012.jpg", lambda content: content[:-300]),
    ("flowers102", "flowers-102/jpg/image_00003.jpg", lambda content: b"GIF89a"),
]


@pytest.mark.parametrize(("name", "file", "change"), DAMAGE)
def test_the_damaged_file_is_named(
    name: str,
    file: str,
    change: Callable[[bytes], bytes],
    publish: Publish,
    tmp_path: Path,
) -> None:
    publish(name).place(tmp_path)
    build(name, tmp_path)
    damaged = tmp_path / file
    original = damaged.read_bytes()
    damaged.write_bytes(change(original))
    with pytest.raises(UserError, match=f"{damaged} .*(truncated|not the file of that name)"):
        build(name, tmp_path)
    if damaged.suffix in (".mat", ".jpg"):
        return
    damaged.unlink()
    build(name, tmp_path)  # from the archive, which is still there
    assert damaged.read_bytes() == original


def test_labels_of_another_part_are_named(publish: Publish, tmp_path: Path) -> None:
    raw = publish("mnist").place(tmp_path)
    build("mnist", tmp_path)
    raw.joinpath("t10k-labels-idx1-ubyte").rename(raw / "train-labels-idx1-ubyte")
    raw.joinpath("t10k-labels-idx1-ubyte").touch()
    with pytest.raises(UserError, match=r"train-labels.* each of the 10 images .* found 4"):
        build("mnist", tmp_path)


def test_the_missing_image_is_named(publish: Publish, tmp_path: Path) -> None:
    publish("flowers102").place(tmp_path)
    build("flowers102", tmp_path)
    (tmp_path / "flowers-102/jpg/image_00007.jpg").unlink()
    with pytest.raises(UserError, match=r"image_00007\.jpg is missing"):
        build("flowers102", tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnist", {"train_examples": 0}, "train_examples .* from 1 to 10, found 0"),
        ("cifar10", {"train_examples": 11}, "train_examples .* from 1 to 10, found 11"),
        ("cifar100", {"test_examples": True}, "test_examples .* from 1 to 4, found True"),
        ("flowers102", {"test_examples": 2.0}, r"test_examples .* found 2\.0"),
        ("flowers102", {"size": 0}, "size must be .* above 0, found 0"),
        ("fashion-mnist", {"root": 5}, "root must be a path, found 5"),
        ("mnist", {"size": 28}, "unknown option 'size'"),
    ],
)
def test_options_are_checked(
    name: str,
    options: dict[str, Any],
    message: str,
    publish: Publish,
    tmp_path: Path,
) -> None:
    publish(name).place(tmp_path)
    with pytest.raises(UserError, match=message):
        build_dataset(name, options={"root": str(tmp_path), **options})
