"""The memory that a piece of work takes, where Linux tells."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

PROCESS = Path("/proc/self")


def added_bytes(work: Callable[[], object]) -> int | None:
    """Return by how much work raises this process's resident memory at its peak.

    Memory that was freed before and is taken again doesn't count, so that a process of its own
    tells most. None where there is no `/proc`, or it can't be written to.
    """
    try:
        # Linux, proc(5): 5 sets the peak back to what is taken now.
        (PROCESS / "clear_refs").write_text("5")
        before = _read("VmRSS")
        work()
        return max(_read("VmHWM") - before, 0)
    except OSError:
        return None


def _read(field: str) -> int:
    """Return a field of the process's status, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", (PROCESS / "status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{PROCESS}/status has no {field}")
    return 1024 * int(found[1])
