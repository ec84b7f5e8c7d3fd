"""Tests of what a data set is, and of building one by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from fl_sim import DATASETS, data
from fl_sim.data import Dataset, build_dataset
from fl_sim.data.dataset import IMAGES_AT_ONCE
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


def test_statistics_cover_all_images_however_many() -> None:
    count = 2 * IMAGES_AT_ONCE + 1
    images = torch.zeros(count, 1, 1, 1)
    images[-1] = 1
    labels = torch.zeros(count, dtype=torch.int64)
    dataset = Dataset(images, labels, images, labels, ("a", "b"))
    assert dataset.mean == pytest.approx((1 / count,))
    assert dataset.std == pytest.approx(((1 / count - 1 / count**2) ** 0.5,))


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


def test_every_registered_dataset_is_a_name_of_this_package() -> None:
    assert all(DATASETS[name] is getattr(data, DATASETS[name].__name__) for name in DATASETS)


def test_a_dataset_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        foreign().classes = ()
