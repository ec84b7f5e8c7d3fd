"""Single image files: what a viewer shows, at the depth that is there, or a sentence."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from fl_sim.data.images import load_image, square
from fl_sim.errors import UserError

RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)
RED, GREEN = (200, 30, 40), (10, 180, 60)


def grey(path: Path) -> torch.Tensor:
    found = load_image(path)
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_keep_their_depth(name: str, tmp_path: Path) -> None:
    values = np.round(RAMP * 65535).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    found = grey(tmp_path / name)
    assert found.shape == (3, 64, 64)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found, torch.from_numpy(values / 65535).float().expand(3, -1, -1), atol=1e-7, rtol=0
    )
    assert len(found.unique()) == 4096


def test_floats_from_0_to_1_are_pixels(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "a.tif")
    assert torch.equal(grey(tmp_path / "a.tif")[1], torch.from_numpy(RAMP.astype(np.float32)))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ((RAMP * 3).astype(np.float32), "holds floats from 0 to 3, and nothing says which"),
        ((RAMP - 0.5).astype(np.float32), "holds floats from -0.5 to 0.5"),
        ((RAMP * np.nan).astype(np.float32), "holds floats from nan to nan"),
        ((RAMP * 1000).astype(np.int32), "holds 32-bit integers from 0 to 1000"),
    ],
)
def test_values_without_a_known_range_are_refused(
    values: np.ndarray, sentence: str, tmp_path: Path
) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=rf"image .*a\.tif {sentence}"):
        load_image(tmp_path / "a.tif")


def halves(left: tuple[int, ...], right: tuple[int, ...], mode: str) -> Image.Image:
    """An image of 16×8 whose halves have a colour each."""
    image = Image.new(mode, (16, 8), left)
    image.paste(Image.new(mode, (8, 8), right), (8, 0))
    return image


def palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (16, 8), 0)
    image.putpalette([*RED, *GREEN])
    image.paste(1, (8, 0, 16, 8))
    if transparent:
        image.info["transparency"] = 1
    return image


WHITE, BLACK, PURE_RED, CMYK_RED = (255,) * 3, (0,) * 3, (255, 0, 0), (0, 255, 255, 0)
COLOURS: dict[str, tuple[Callable[[], Image.Image], str, tuple[tuple[int, ...], ...]]] = {
    "RGB": (lambda: halves(RED, GREEN, "RGB"), "png", (RED, GREEN)),
    "grey": (lambda: halves((90,), (7,), "L"), "png", ((90,) * 3, (7,) * 3)),
    "one bit": (lambda: halves((0,), (1,), "1"), "png", (BLACK, WHITE)),
    "palette": (lambda: palette(False), "png", (RED, GREEN)),
    "palette with a hole": (lambda: palette(True), "png", (RED, WHITE)),
    "GIF with a hole": (lambda: palette(True), "gif", (RED, WHITE)),
    "alpha": (lambda: halves((*RED, 255), (*GREEN, 0), "RGBA"), "png", (RED, WHITE)),
    "half": (lambda: halves((*BLACK, 255), (*BLACK, 127), "RGBA"), "png", (BLACK, (128,) * 3)),
    "grey and alpha": (lambda: halves((90, 255), (7, 0), "LA"), "png", ((90,) * 3, WHITE)),
    "CMYK": (lambda: halves(CMYK_RED, (255, 0, 255, 0), "CMYK"), "tif", (PURE_RED, (0, 255, 0))),
    "CMYK JPEG": (lambda: halves(CMYK_RED, (0,) * 4, "CMYK"), "jpg", (PURE_RED, WHITE)),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLOURS)
def test_colours_are_those_that_a_viewer_shows(kind: str, tmp_path: Path) -> None:
    build, ending, expected = COLOURS[kind]
    build().save(tmp_path / f"a.{ending}")
    found = load_image(tmp_path / f"a.{ending}")
    assert isinstance(found, Image.Image)
    assert (found.mode, found.size) == ("RGB", (16, 8))
    for column, colour in ((2, expected[0]), (13, expected[1])):
        pixel = found.getpixel((column, 4))
        # JPEG and halves of 255 are off by a little.
        assert np.abs(np.subtract(pixel, colour)).max() <= (3 if "JPEG" in kind else 1)


def test_an_orientation_among_damaged_tags_is_followed(tmp_path: Path) -> None:
    # A width of bytes, which Pillow reads and can't write.
    entries = struct.pack(">HHHL4sHHLHxx", 2, 0x0100, 1, 1, b"\xff" * 4, 0x0112, 3, 1, 6)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + entries + bytes(4)
    Image.new("RGB", (4, 2), (10, 20, 30)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(struct.error):
        ImageOps.exif_transpose(image)
    found = load_image(tmp_path / "a.jpg")
    assert isinstance(found, Image.Image) and found.size == (2, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_cameras_orientation_is_followed(orientation: int, tmp_path: Path) -> None:
    upright = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    found = load_image(tmp_path / "a.png")
    np.testing.assert_array_equal(np.array(found), upright)


def test_a_mode_that_is_not_known_is_refused(tmp_path: Path) -> None:
    lab = ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), lab, "RGB", "LAB")
    image = ImageCms.applyTransform(Image.new("RGB", (8, 8), RED), transform)
    assert image is not None
    image.save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif is in LAB, which can't be turned into RGB"):
        load_image(tmp_path / "a.tif")


def test_of_several_frames_the_first_is_taken_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    found = load_image(tmp_path / "a.tif")
    assert isinstance(found, Image.Image)
    assert found.getpixel((0, 0)) == RED
    [record] = caplog.records
    assert record.getMessage().endswith("a.tif has 2 frames, of which the first is taken")


def test_deep_and_shallow_images_are_resized_alike(tmp_path: Path) -> None:
    for name, values in (("a.png", RAMP * 255), ("b.png", RAMP * 65535)):
        kind = np.uint8 if name == "a.png" else np.uint16
        Image.fromarray(np.round(values).astype(kind)).save(tmp_path / name)
    middle = square(16)
    shallow, deep = (middle(load_image(tmp_path / name)) for name in ("a.png", "b.png"))
    assert (shallow.dtype, deep.dtype) == (torch.uint8, torch.float32)
    # Pillow and PyTorch round their weights differently, by less than two levels of 255.
    torch.testing.assert_close(deep, shallow.float() / 255, atol=2 / 255, rtol=0)
