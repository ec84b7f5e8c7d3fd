"""Tests of the folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fl_sim.data import image_folder
from fl_sim.errors import UserError


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
        ({"root": ".", "size": True}, "above 0, found True"),
    ],
)
def test_image_folder_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        image_folder(**options)
