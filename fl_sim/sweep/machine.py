"""What the machine has for runs side by side: processors and memory."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil

FIRST_GUESS_BYTES = 1 << 30
"""What a run is taken to need until one has ended: PyTorch and Flower alone take 0.6 GiB."""
_GROUP = Path("/sys/fs/cgroup")


def processors() -> int:
    """Return how many processors this process may use: its affinity, and its container's quota."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    count = len(allowed) or os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = (_GROUP / "cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))  # of no quota, int("max") fails
    return count


def free_bytes() -> int:
    """Return the memory that can be had without swapping, within the container's limit."""
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):
        limit = int((_GROUP / "memory.max").read_text())
        free = min(free, limit - int((_GROUP / "memory.current").read_text()))
    return free
