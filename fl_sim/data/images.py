"""How a single image file is read: as the colours that a viewer shows, or refused by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from fl_sim.errors import UserError

logger = logging.getLogger(__name__)
BACKGROUND = (255, 255, 255)
"""What shows through where an image is transparent: white, as in most viewers."""
SIXTEEN_BITS = 2**16 - 1
PLAIN = ("1", "L", "RGB", "CMYK", "YCbCr", "HSV")
"""Pillow's modes of 8 bits a channel that it turns into RGB rightly."""
ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its orientation tag."""
Transform = Callable[[Image.Image | Tensor], Tensor]


def square(size: int) -> Transform:
    """Return a function that makes an image's middle square (3, size, size) of its own type.

    The shorter side is resized to `size` pixels, with antialiasing.

    Raises:
        UserError: the size isn't a whole number above 0.
    """
    from torchvision.transforms import v2

    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"size must be a whole number of pixels above 0, found {size!r}")
    transform: Transform = v2.Compose(
        [v2.Resize(size, antialias=True), v2.CenterCrop(size), _to_tensor]
    )
    return transform


def load_image(path: str | Path) -> Image.Image | Tensor:
    """Read an image file.

    Cameras' orientation tags are followed, palettes and CMYK become RGB, what is transparent
    becomes white. Grey images of 16 bits and floats keep their depth.

    Returns:
        RGB of 8 bits; or (3, H, W) float32 pixels in [0, 1], of a grey image with more.

    Raises:
        UserError: it is missing, damaged or not an image, or its values have no known range.
    """
    try:
        with Image.open(path) as image:
            frames, kind = getattr(image, "n_frames", 1), image.format
            image.load()
            turn = TURNS.get(_orientation(image))
            upright = image if turn is None else image.transpose(turn)
            is_deep = upright.mode[0] in "IF"
            found = upright.copy() if is_deep else _colours(upright)
    except FileNotFoundError as error:
        raise UserError(f"image {path} is missing") from error
    # Pillow raises any of these on a damaged file.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"image {path} can't be read: truncated, damaged or not an image"
        ) from error
    if frames > 1:
        logger.warning("image %s has %d frames, of which the first is taken", path, frames)
    if found is None:
        raise UserError(
            f"image {path} is in {upright.mode}, which can't be turned into RGB; save it as RGB"
        )
    return _grey(found, kind, path) if is_deep else found


def _orientation(image: Image.Image) -> Any:
    """Return the orientation tag; None without one, or where damage makes it unreadable."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow parses the tags now, and raises what its parser happens to
        return None


def _to_tensor(image: Image.Image | Tensor) -> Tensor:
    if isinstance(image, Tensor):
        return image.clamp(0, 1)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _colours(image: Image.Image) -> Image.Image | None:
    """Turn an image of 8 bits a channel into RGB; None where that isn't known."""
    if image.mode in ALPHA or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, (*BACKGROUND, 255))
        return Image.alpha_composite(page, layer).convert("RGB")
    return image.convert("RGB") if image.mode in (*PLAIN, "P") else None


def _grey(image: Image.Image, kind: str | None, path: str | Path) -> Tensor:
    """Return a grey image with more than 8 bits as pixels, three times the same.

    Raises:
        UserError: nothing says which values are black and white.
    """
    values = np.array(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    bits = 16 if image.mode.startswith("I;16") or kind in ("PNG", "PPM") else 32
    if image.mode == "F" and 0 <= low <= high <= 1:
        pixels = values
    elif image.mode != "F" and bits == 16 and 0 <= low <= high <= SIXTEEN_BITS:
        pixels = values / SIXTEEN_BITS
    else:
        what = "floats" if image.mode == "F" else f"{bits}-bit integers"
        raise UserError(
            f"image {path} holds {what} from {low:g} to {high:g}, and nothing says which are black "
            "and white; save it as floats in [0, 1], or with 8 or 16 bits"
        )
    return torch.from_numpy(pixels).float().expand(3, -1, -1).contiguous()
