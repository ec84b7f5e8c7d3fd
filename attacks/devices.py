"""What computes: the machine's processor, or a GPU."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DEVICES = r"auto|cpu|cuda(:\d+)?|mps"
"""Names, as a pattern."""
KNOWN = '"auto", "cpu", "cuda", "cuda:N" or "mps"'
"""The same in words."""


def device_named(name: str) -> torch.device:
    """Return the device of a name; "auto" stands for a GPU of CUDA where there is one.

    Raises:
        ValueError: it isn't a name, or this machine hasn't got it.
    """
    import torch  # late: a scenario is read without it

    if not re.fullmatch(DEVICES, name):
        raise ValueError(f"device must be {KNOWN}, found {name!r}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    named = torch.device(name)
    mps = int(torch.backends.mps.is_available())
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": mps}[named.type]
    if (named.index or 0) >= present:
        raise ValueError(f"device must be one that PyTorch finds on this machine, found {name!r}")
    return named
