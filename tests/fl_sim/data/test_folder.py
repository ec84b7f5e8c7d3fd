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


CLASSES = {"normal": 3, "pneumonia": 4}


@pytest.mark.parametrize(
    "names", [("train", "test"), ("Training", "Validation"), ("train", "val"), ("train", "valid")]
)
def test_a_folder_that_is_split_keeps_its_split(names: tuple[str, str], tmp_path: Path) -> None:
    make_folder(tmp_path / names[0], CLASSES)
    make_folder(tmp_path / names[1], {"normal": 1, "pneumonia": 2})
    dataset = image_folder(root=tmp_path, size=8)
    assert dataset.classes == ("normal", "pneumonia")
    assert dataset.labels.bincount().tolist() == [3, 4]
    assert dataset.test_labels.bincount().tolist() == [1, 2]


def test_of_three_parts_the_validation_is_left_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in ("train", "val", "test"):
        make_folder(tmp_path / part, CLASSES)
    assert len(image_folder(root=tmp_path, size=8).test_labels) == 7
    assert "train and test are read, ['val'] not" in caplog.text


def test_a_class_that_the_test_part_lacks_is_no_mistake(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", {"a": 2, "b": 2, "c": 2})
    make_folder(tmp_path / "test", {"a": 1, "c": 1})
    assert sorted(image_folder(root=tmp_path, size=8).test_labels.tolist()) == [0, 2]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("fold_0", "fold_1"), r"parts of a data set \(fold_0, fold_1\), not classes; name one of"),
        (("split1", "split2", "split3"), "parts of a data set"),
        (("train",), r"parts of a data set \(train\), not classes; .* as in .*train$"),
        (("val", "test"), "parts of a data set"),
    ],
)
def test_parts_that_are_no_split_are_named(
    parts: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    for part in parts:
        make_folder(tmp_path / part, CLASSES)
    with pytest.raises(UserError, match=message):
        image_folder(root=tmp_path)


def test_a_class_may_be_called_like_a_part(tmp_path: Path) -> None:
    make_folder(tmp_path, {"plane": 2, "train": 2})
    make_folder(tmp_path / "train" / "more", {"red": 1})
    dataset = image_folder(root=tmp_path, size=8)
    assert dataset.classes == ("plane", "train")
    assert len(dataset.labels) + len(dataset.test_labels) == 5


def test_files_beside_class_folders_leave_a_split_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in ("train", "test"):
        make_folder(tmp_path / part, CLASSES)
        (tmp_path / part / "labels.csv").write_text("")
    make_folder(tmp_path, {"samples": 3})
    assert image_folder(root=tmp_path, size=8).classes == ("normal", "pneumonia")
    assert "train and test are read, ['samples'] not" in caplog.text
    assert "left out: 1 of .csv" in caplog.text


@pytest.mark.parametrize("flat", ["test", "train"])
def test_a_part_without_classes_is_refused_by_name(flat: str, tmp_path: Path) -> None:
    other = {"test": "train", "train": "test"}[flat]
    make_folder(tmp_path, {flat: 3})
    make_folder(tmp_path / other, CLASSES)
    with pytest.raises(UserError, match=rf"{flat} has no class folders; .* as in .*{other}$"):
        image_folder(root=tmp_path)


def test_a_part_beside_what_is_none_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", CLASSES)
    make_folder(tmp_path, {"samples": 3})
    with pytest.raises(UserError, match=r"holds parts of a data set \(train\), not classes"):
        image_folder(root=tmp_path)


def test_what_systems_hide_is_no_class_and_no_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_folder(tmp_path, {**CLASSES, ".cache": 2, "__MACOSX": 2})
    (tmp_path / "normal" / "._0.png").write_text("")
    dataset = image_folder(root=tmp_path, size=8)
    assert dataset.classes == ("normal", "pneumonia")
    assert len(dataset.labels) + len(dataset.test_labels) == 7
    assert not caplog.text


def test_an_image_beside_the_class_folders_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_folder(tmp_path, CLASSES)
    Image.new("RGB", (8, 8)).save(tmp_path / "stray.png")
    assert len(image_folder(root=tmp_path, size=8).test_labels) == 2
    assert "files that aren't images in class folders are left out: 1 of .png" in caplog.text


def test_a_test_class_without_training_images_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", CLASSES)
    make_folder(tmp_path / "test", {"normal": 1, "tumour": 1})
    with pytest.raises(UserError, match=r"test.tumour has no counterpart in .*train"):
        image_folder(root=tmp_path)


def test_files_that_are_left_out_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_folder(tmp_path, CLASSES)
    for name in ("a.npy", "b.npy", "LABELS", ".DS_Store"):
        (tmp_path / "normal" / name).write_text("")
    image_folder(root=tmp_path, size=8)
    assert (
        "files that aren't images in class folders are left out: 2 of .npy, 1 of no ending"
        in caplog.text
    )
