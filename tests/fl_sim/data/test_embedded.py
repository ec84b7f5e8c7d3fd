"""Tests of the data sets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fl_sim import DATASETS, data
from fl_sim.data import Dataset, build_dataset, image_folder, mnist_5k, photos
from fl_sim.errors import UserError


def valid() -> dict[str, Any]:
    return {
        "images": torch.linspace(0, 1, 4 * 3 * 2 * 2).reshape(4, 3, 2, 2),
        "labels": torch.tensor([0, 1, 0, 1]),
        "test_images": torch.zeros(2, 3, 2, 2),
        "test_labels": torch.tensor([0, 1]),
        "classes": ("a", "b"),
    }


def test_dataset_states_its_shape_and_statistics() -> None:
    dataset = Dataset(**valid())
    assert (dataset.num_classes, dataset.input_shape) == (2, (3, 2, 2))
    expected = dataset.images.transpose(0, 1).flatten(1)
    # float32 against float64
    assert dataset.mean == pytest.approx(expected.mean(1).tolist(), rel=1e-5)
    assert dataset.std == pytest.approx(expected.std(1, correction=0).tolist(), rel=1e-5)


def test_std_of_a_constant_channel_is_one() -> None:
    images = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    images[:, 1] = 0.3
    std = Dataset(**(valid() | {"images": images})).std
    assert std[1] == 1 and std[0] < 1 and std[2] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ("a",)}, "at least 2 classes, found 1"),
        ({"images": torch.zeros(4, 2, 2)}, r"\(N, C, H, W\) float32 .* found \(4, 2, 2\)"),
        ({"images": torch.zeros(4, 3, 2, 2).double()}, "float32 .* torch.float64"),
        ({"images": torch.zeros(0, 3, 2, 2), "labels": torch.zeros(0).long()}, "at least one"),
        ({"test_images": torch.zeros(0, 3, 2, 2)}, "test_images .* at least one"),
        ({"test_images": torch.zeros(2, 1, 2, 2)}, r"shape of images, \(3, 2, 2\), found \(1,"),
        ({"images": torch.full((4, 3, 2, 2), 255.0)}, r"\[0, 1\], found values from 255.0"),
        ({"images": torch.full((4, 3, 2, 2), -0.1)}, r"\[0, 1\], found values from -0.1"),
        ({"images": torch.full((4, 3, 2, 2), torch.nan)}, r"finite, .* found values from nan"),
        ({"labels": torch.tensor([0, 1, 0])}, r"labels must be a \(4,\) int64 .* found \(3,\)"),
        ({"labels": torch.tensor([0, 1, 0, 1]).int()}, "int64 .* torch.int32"),
        ({"labels": torch.tensor([0, 1, 0, 2])}, r"labels must be in 0\.\.1, found 0 to 2"),
        ({"test_labels": torch.tensor([-1, 0])}, r"test_labels must be in 0\.\.1, found -1 to 0"),
        ({"mean": (0.5,)}, "each of 3 channels, found 1 and 3"),
        ({"std": (1.0, 0.0, 1.0)}, "std finite and above 0"),
    ],
)
def test_dataset_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dataset(**(valid() | change))


def test_mnist_5k_is_balanced_and_fixed() -> None:
    dataset = mnist_5k()
    assert dataset.input_shape == (1, 28, 28) and dataset.classes == tuple("0123456789")
    assert dataset.labels.bincount().tolist() == [400] * 10
    assert dataset.test_labels.bincount().tolist() == [100] * 10
    assert dataset.images.max() == 1
    # MNIST's published mean and deviation, of 60,000 images; ours are of 4,000
    assert dataset.mean == pytest.approx((0.1307,), abs=0.005)
    assert dataset.std == pytest.approx((0.3081,), abs=0.005)
    assert torch.equal(dataset.images, mnist_5k().images)
    everything = torch.cat([dataset.images, dataset.test_images]).flatten(1)
    assert len(everything.unique(dim=0)) == 5000


def test_mnist_5k_is_shuffled() -> None:
    assert len(mnist_5k().labels[:50].unique()) == len(mnist_5k().test_labels[:50].unique()) == 10


@pytest.mark.parametrize("size", [32, 64])
def test_photos(size: int) -> None:
    dataset = photos(size=size)
    assert dataset.input_shape == (3, size, size) and dataset.num_classes == 8
    assert dataset.labels.bincount().tolist() == [200] * 8
    assert dataset.test_labels.bincount().tolist() == [40] * 8
    crops = torch.cat([dataset.images, dataset.test_images])
    assert len(crops.flatten(1).unique(dim=0)) == len(crops)
    assert crops.var(dim=(2, 3)).mean(1).sqrt().min() >= data.LEAST_CONTRAST
    assert torch.equal(dataset.images, photos(size=size).images)


def test_photos_for_training_and_testing_share_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paint each pixel with its column and a checkerboard, and see which columns come back."""

    def painted(file: str) -> torch.Tensor:
        columns = torch.linspace(0, 1, 300).expand(256, 300)
        rows = (torch.arange(256) % 2).float()[:, None].expand(256, 300)
        return torch.stack([columns, rows, rows])

    monkeypatch.setattr(data, "_photograph", painted)
    dataset = photos(size=64)
    assert dataset.images[:, 0].max() < dataset.test_images[:, 0].min()


def test_photographs_keep_their_proportions() -> None:
    for file in data.PHOTOGRAPHS.values():
        photograph = data._photograph(file)
        assert photograph.shape[0] == 3 and min(photograph.shape[1:]) == 256
    assert data._photograph("coffee.png").shape == (3, 256, 384)  # 600×400


@pytest.mark.parametrize("size", [28, 32.0, "32", True])
def test_photos_refuses_other_sizes(size: Any) -> None:
    with pytest.raises(UserError, match="size must be 32 or 64, found"):
        photos(size=size)


def make_folder(root: Path, counts: dict[str, int]) -> Path:
    """Write PNGs of 12×9 pixels; the red level tells the class, the green one the image."""
    for index, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.zeros((9, 12, 3), dtype=np.uint8)
            pixels[..., 0], pixels[..., 1] = 50 * index, 10 * number
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_image_folder_reads_resizes_and_splits(tmp_path: Path) -> None:
    make_folder(tmp_path, {"cat": 10, "dog": 2, "emu": 5})
    Image.new("L", (6, 20), 100).save(tmp_path / "dog" / "grey.png")
    dataset = image_folder(root=tmp_path, size=8)
    assert dataset.input_shape == (3, 8, 8) and dataset.classes == ("cat", "dog", "emu")
    assert dataset.labels.bincount().tolist() == [8, 2, 4]
    assert dataset.test_labels.bincount().tolist() == [2, 1, 1]
    everything = torch.cat([dataset.images, dataset.test_images])
    labels = torch.cat([dataset.labels, dataset.test_labels])
    assert len(everything.flatten(1).unique(dim=0)) == 18
    coloured = everything[:, 2, 0, 0] == 0
    assert torch.equal(everything[coloured][:, 0, 0, 0] * 255, labels[coloured] * 50.0)
    assert torch.equal(dataset.images, image_folder(root=str(tmp_path), size=8).images)


def test_image_folder_keeps_the_middle(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 2, "b": 0})
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, 4:12] = 255
    for number in range(2):
        Image.fromarray(wide).save(tmp_path / "b" / f"{number}.png")
    dataset = image_folder(root=tmp_path, size=8)
    assert torch.equal(dataset.images[dataset.labels == 1], torch.ones(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "at least 2 class folders, found 0"),
        ({"cat": 3}, "at least 2 class folders, found 1"),
        ({"cat": 3, "dog": 1}, "dog must have at least 2 images, found 1"),
        ({"cat": 0, "dog": 3}, "cat must have at least 2 images, found 0"),
    ],
)
def test_image_folder_refuses_too_few(counts: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        image_folder(root=make_folder(tmp_path, counts))


@pytest.mark.parametrize("keep", [0, 8, 20, 60, -200])
def test_image_folder_names_the_damaged_image(keep: int, tmp_path: Path) -> None:
    make_folder(tmp_path, {"cat": 2, "dog": 2})
    # Noise doesn't compress: the last 200 bytes hold pixels.
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    victim = tmp_path / "dog" / "1.png"
    Image.fromarray(noise).save(victim)
    victim.write_bytes(victim.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"dog.1\.png can't be read"):
        image_folder(root=tmp_path)


def test_image_folder_names_the_file_that_is_no_image(tmp_path: Path) -> None:
    make_folder(tmp_path, {"cat": 2, "dog": 2})
    (tmp_path / "cat" / "notes.jpg").write_text("not an image")
    with pytest.raises(UserError, match=r"notes\.jpg can't be read"):
        image_folder(root=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": "no/such/folder"}, "no/such/folder doesn't exist"),
        ({"root": 5}, "root must be a path, found 5"),
        ({"root": ".", "size": 0}, "above 0, found 0"),
        ({"root": ".", "size": 1.5}, r"above 0, found 1\.5"),
    ],
)
def test_image_folder_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        image_folder(**options)


def foreign() -> Dataset:
    return Dataset(**valid())


def not_a_dataset() -> list[int]:
    return []


def test_build_dataset_takes_names_options_and_targets() -> None:
    assert build_dataset("photos", options={"size": 64}).input_shape == (3, 64, 64)
    assert build_dataset(f"{__name__}:foreign", options={}).classes == ("a", "b")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("photo", {}, "did you mean 'photos'"),
        ("photos", {"size": 48}, "'photos': size must be 32 or 64, found 48"),
        ("photos", {"colour": 1}, "'photos': .*colour"),
        ("image-folder", {}, "root"),
        (f"{__name__}:not_a_dataset", {}, "must return a fl_sim.data.Dataset, found list"),
    ],
)
def test_build_dataset_refuses(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_dataset(name, options=options)


def test_every_registered_dataset_loads_from_this_module() -> None:
    assert {DATASETS[name].__module__ for name in DATASETS} == {data.__name__}


def test_a_dataset_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        foreign().classes = ()
