"""Write a benchmark's rows as Markdown and CSV, with all that is needed to read and repeat them."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path("docs") / "results"
"""Where tables go unless told otherwise: from a checkout, beside those it came with."""


def provenance(command: str, seed: int) -> str:
    """Return the line that says how, with what, on what and when the rows were measured."""
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("fl-sim", "flwr", "torch", "numpy", "scipy")
    )
    return (
        f"`{command}`, seed {seed}; {versions}, Python {platform.python_version()}; "
        f"{os.cpu_count()} cores, {platform.machine()}, {gpu()}; {datetime.now(UTC):%Y-%m-%d}."
    )


def gpu() -> str:
    """Return the name of the GPU that attacks search on, or "no GPU"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def write_table(
    name: str,
    title: str,
    command: str,
    seed: int,
    rows: Sequence[Mapping[str, Any]],
    *,
    notes: Sequence[str] = (),
    folder: Path = RESULTS,
) -> str:
    """Write rows as `<name>.md` and `<name>.csv`, and return the Markdown.

    Args:
        name: the files' stem.
        title: what was measured, one or two sentences.
        command: repeats it.
        seed: of the draws.
        rows: all with the same keys, the columns.
        notes: paragraphs between the title and the table, such as published figures.
        folder: where to write; created if missing.
    """
    columns = list(rows[0])
    lines = [f"# {title}", "", provenance(command, seed), ""]
    for note in notes:
        lines += [note, ""]
    lines += [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows),
        "",
    ]
    text = "\n".join(lines)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text


def _cell(value: Any) -> str:
    """Write what stands in one column alone."""
    return str(value).replace("|", "\\|")
