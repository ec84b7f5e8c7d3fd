"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is on the disk, as a whole, once it has its name.

    Raises:
        OSError: it can't be written.
    """
    beside = path.with_name(path.name + ".tmp")
    beside.write_bytes(data)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)
