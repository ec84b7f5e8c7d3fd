"""Weights and gradients in the files that people have: safetensors, checkpoints and NumPy archives.

None of them runs code: a checkpoint is read with PyTorch's `weights_only`, an archive without
objects.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from fl_sim.errors import UserError
from fl_sim.tensor_file import read_bytes

MOST_BYTES = 2**35
"""Of an archive's arrays, unpacked: 32 GiB. A larger one is taken for a bomb."""
NESTED = ("state_dict", "model_state_dict", "model")
"""Where checkpoints that hold more than weights keep them."""


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Return the arrays in a file, by name, in its order where it has one.

    Args:
        path: `.safetensors`, `.npz`, or a checkpoint of `torch.save` by any other name. Positional
            arrays of an archive (`arr_0`) are numbered "0", "1" and so on.

    Raises:
        UserError: it can't be read, holds something else, or would run code.
    """
    readers = {".safetensors": _safetensors, ".npz": _archive}
    read = readers.get(path.suffix.lower(), _checkpoint)
    if not path.is_file():
        raise UserError(f"{path} doesn't exist, or isn't a file")
    try:
        found = read(path)
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path} tells of arrays that no memory here holds") from error
    except Exception as error:  # whatever a file that somebody sent you leads a reader to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} can't be read: {reason}") from error
    strange = next((n for n, t in found.items() if t.is_complex() or t.is_quantized), None)
    if strange is not None:
        raise UserError(f"{path}: {strange!r} must hold real numbers, found {found[strange].dtype}")
    if not found:
        raise UserError(f"{path} holds no arrays")
    return found


def _safetensors(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load(read_bytes(path, "file"))


def _archive(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as members:
        size = sum(member.file_size for member in members.infolist())
    if size > MOST_BYTES:
        raise UserError(f"{path} must hold at most {MOST_BYTES} bytes, unpacked, found {size}")
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    strange = next((name for name, array in arrays.items() if array.dtype.kind not in "biuf"), None)
    if strange is not None:
        found = arrays[strange].dtype
        raise UserError(f"{path}: {strange!r} must hold real numbers, found {found}")
    return {re.sub(r"^arr_(\d+)$", r"\1", n): torch.from_numpy(a) for n, a in arrays.items()}


def _checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} can't be read as a checkpoint of weights alone, and one that would run code "
            "isn't read: save it with torch.save(model.state_dict(), FILE)"
        ) from error
    for key in NESTED:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
            break
    return _tensors(path, held)


def _tensors(path: Path, held: Any) -> dict[str, Tensor]:
    if isinstance(held, list | tuple):  # as torch.autograd.grad returns gradients
        held = dict(enumerate(held))
    is_named = isinstance(held, Mapping) and all(isinstance(t, Tensor) for t in held.values())
    if not is_named:
        raise UserError(
            f"{path} must hold tensors by name, as model.state_dict() does, found "
            f"{type(held).__name__}"
        )
    return {str(name): tensor.detach() for name, tensor in held.items()}
