"""Files of tensors in order, and JSON beside them: safetensors, and nothing that runs.

A file is of one kind and version. Its JSON stands under "fl-sim" in the metadata of safetensors,
with the tensors' names in order; safetensors has an order of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fl_sim.errors import UserError

KEY = "fl-sim"
REAL = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What a file may hold, and how safetensors calls it."""
_ERRORS = (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError)


def pack(kind: str, version: int, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Return a file's bytes; the same for the same content.

    Raises:
        UserError: a tensor doesn't hold real numbers.
    """
    strange = next((n for n, tensor in tensors.items() if tensor.dtype not in REAL), None)
    if strange is not None:
        raise UserError(f"must hold real numbers, found {tensors[strange].dtype} in {strange!r}")
    described = {"kind": kind, "version": version, "about": about, "tensors": list(tensors)}
    held = {
        # Copies: safetensors refuses two views of one storage.
        f"{position:06d}": tensor.detach().cpu().clone().contiguous()
        for position, tensor in enumerate(tensors.values())
    }
    return save(held, metadata={KEY: json.dumps(described, allow_nan=False)})


def unpack(data: bytes, kind: str, version: int) -> tuple[Any, dict[str, Tensor]]:
    """Return the JSON and the tensors, real ones, in a file of a kind.

    Raises:
        UserError: it is something else, as the end of a sentence: "is cut off", "is of version 2".
    """
    described = _described(data)
    if described.get("kind") != kind:
        raise UserError(f"holds {described.get('kind')!r}, where {kind!r} is wanted")
    if described.get("version") != version:
        found = described.get("version")
        raise UserError(f"is of version {found!r}, and this fl-sim reads version {version}")
    names = described.get("tensors")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError("doesn't name its tensors")
    try:
        held = load(data)
    except _ERRORS as error:
        raise UserError(f"is damaged: {_line(error)}") from error
    if sorted(held) != [f"{position:06d}" for position in range(len(names))]:
        raise UserError(f"must hold the {len(names)} tensors that it names, found {len(held)}")
    if len(set(names)) < len(names):
        raise UserError("names a tensor twice")
    return described.get("about"), {name: held[f"{i:06d}"] for i, name in enumerate(names)}


def _described(data: bytes) -> dict[str, Any]:
    """Return what a file says of itself, and make sure that its tensors are real numbers."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise UserError("isn't a safetensors file, or is cut off")
    try:
        header = json.loads(data[8 : 8 + length])
        dtypes = {entry["dtype"] for key, entry in header.items() if key != "__metadata__"}
        described: dict[str, Any] = json.loads(header["__metadata__"][KEY])
        is_object = isinstance(described, dict)
    except (*_ERRORS, AttributeError, RecursionError) as error:
        raise UserError("isn't a file of fl-sim, or is damaged") from error
    strange = sorted(map(str, dtypes - {*REAL.values()}))
    if strange:
        raise UserError(f"must hold real numbers, found {strange[0]}")
    if not is_object:
        raise UserError("isn't a file of fl-sim, or is damaged")
    return described


def read_bytes(path: Path, what: str) -> bytes:
    """Return a file's bytes.

    Raises:
        UserError: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{what} {path} can't be read: {error.strerror}") from error


def digest(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
