"""Tests of the data sets that ship with libraries."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fl_sim.data import embedded, mnist_5k, photo_places, photos
from fl_sim.errors import UserError


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
    assert crops.var(dim=(2, 3)).mean(1).sqrt().min() >= embedded.LEAST_CONTRAST
    assert torch.equal(dataset.images, photos(size=size).images)


def test_photos_for_training_and_testing_share_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paint each pixel with its column and a checkerboard, and see which columns come back."""

    def painted(file: str) -> torch.Tensor:
        columns = torch.linspace(0, 1, 300).expand(256, 300)
        rows = (torch.arange(256) % 2).float()[:, None].expand(256, 300)
        return torch.stack([columns, rows, rows])

    monkeypatch.setattr(embedded, "_photograph", painted)
    dataset = photos(size=64)
    assert dataset.images[:, 0].max() < dataset.test_images[:, 0].min()


def test_photographs_keep_their_proportions() -> None:
    for file in embedded.PHOTOGRAPHS.values():
        photograph = embedded._photograph(file)
        assert photograph.shape[0] == 3 and min(photograph.shape[1:]) == 256
    assert embedded._photograph("coffee.png").shape == (3, 256, 384)  # 600×400


@pytest.mark.parametrize("size", [28, 32.0, "32", True])
def test_photos_refuses_other_sizes(size: Any) -> None:
    with pytest.raises(UserError, match="size must be 32 or 64, found"):
        photos(size=size)


def test_photo_places() -> None:
    dataset = photo_places()
    assert dataset.input_shape == (3, 32, 32) and dataset.num_classes == 100
    assert dataset.labels.bincount().tolist() == [96] * 100
    assert dataset.test_labels.bincount().tolist() == [25] * 100
    crops = torch.cat([dataset.images, dataset.test_images])
    assert len(crops.flatten(1).unique(dim=0)) == len(crops)
    assert len(dataset.labels[:50].unique()) > 25  # shuffled
    assert torch.equal(dataset.images, photo_places().images)
