"""The run folders that the command line names: `runs/<name>-<n>`."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from fl_sim.errors import UserError

RUNS = Path("runs")


def new_folder(name: str, out: Path | None) -> Path:
    """Create the run folder: `out`, or `runs/<name>-<n>` with the next free n.

    Raises:
        UserError: `out` is something else than an empty folder.
    """
    if out is not None:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"--out {out} exists; name a new or an empty folder, or add --resume")
        out.mkdir(parents=True, exist_ok=True)
        return out
    while True:
        folder = RUNS / f"{_folder_name(name)}-{max(_numbered_folders(name), default=0) + 1}"
        with suppress(FileExistsError):  # another run took this number just now
            folder.mkdir(parents=True)
            return folder


def folder_to_resume(name: str, out: Path | None) -> Path:
    """Return `out`, or the `runs/<name>-<n>` with the largest n.

    Raises:
        UserError: there is no such folder.
    """
    folders = _numbered_folders(name)
    if out is None and not folders:
        raise UserError(f"nothing to resume: there is no {RUNS / _folder_name(name)}-<n>")
    folder = out or folders[max(folders)]
    if not folder.is_dir():
        raise UserError(f"nothing to resume: {folder} doesn't exist or isn't a folder")
    return folder


def _numbered_folders(name: str) -> dict[int, Path]:
    pattern = re.compile(re.escape(_folder_name(name)) + r"-(\d+)")
    folders = RUNS.iterdir() if RUNS.is_dir() else ()
    return {int(match[1]): p for p in folders if (match := pattern.fullmatch(p.name))}


def _folder_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)
