"""Write a benchmark's table with all that is needed to read and repeat it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write_table(
    name: str, title: str, command: str, seed: int, rows: Sequence[Mapping[str, Any]]
) -> str:
    """Write rows as Markdown and return the text.

    Args:
        name: the file's stem.
        title: what was measured, one or two sentences.
        command: repeats it.
        seed: of the draws.
        rows: all with the same keys, the columns.
    """
    versions = ", ".join(f"{p} {version(p)}" for p in ("fl-sim", "flwr", "torch", "numpy"))
    columns = list(rows[0])
    lines = [
        f"# {title}",
        "",
        f"`{command}`, seed {seed}; {versions}, Python {platform.python_version()}; "
        f"{os.cpu_count()} cores, {platform.machine()}, no GPU; {datetime.now(UTC):%Y-%m-%d}.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(str(row[column]) for column in columns) + " |" for row in rows),
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    text = "\n".join(lines)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    return text
