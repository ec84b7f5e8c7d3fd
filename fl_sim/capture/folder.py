"""The captures of a run: a folder for each round, in which what clients share is there once."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fl_sim.atomic import write_atomically
from fl_sim.capture.file import pack_capture, pack_weights, weights_name
from fl_sim.capture.update import Update
from fl_sim.errors import UserError
from fl_sim.recipe import Recipe

_ROUND = re.compile(r"round-(\d+)")
_CLIENT = re.compile(r"client-(\d+)\.safetensors")


@dataclass
class CaptureFolder:
    """The folder `captures/` of a run.

    Args:
        path: where it is, or will be.
    """

    path: Path

    def __post_init__(self) -> None:
        # What was written last, so that weights that clients share are packed once.
        self._last: tuple[int, Mapping[str, Tensor], bytes] | None = None

    def keep(self, update: Update, recipe: Recipe) -> None:
        """Write an update down, and the weights that it began with unless they are there.

        Raises:
            OSError: the disk is full, or the folder can't be written.
        """
        folder = self.path / f"round-{update.server_round:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        last = self._last
        if last is None or last[0] != update.server_round or last[1] is not update.received:
            weights = pack_weights(update.received)
            write_atomically(folder / weights_name(weights), weights)
            last = self._last = (update.server_round, update.received, weights)
        file = self.file(update.server_round, update.client)
        write_atomically(file, pack_capture(update, recipe, last[2]))

    def file(self, server_round: int, client: int) -> Path:
        """Return where a capture is."""
        return self.path / f"round-{server_round:05d}" / f"client-{client:05d}.safetensors"

    def of_client(self, client: int) -> dict[int, Path]:
        """Return the captures of a client, by round."""
        found = {r: self.file(r, client) for r in self.rounds()}
        return {r: file for r, file in found.items() if file.exists()}

    def clients(self) -> dict[int, list[int]]:
        """Return the rounds that there are captures of, by client."""
        found: dict[int, list[int]] = {}
        for server_round in self.rounds():
            for file in (self.path / f"round-{server_round:05d}").iterdir():
                if match := _CLIENT.fullmatch(file.name):
                    found.setdefault(int(match[1]), []).append(server_round)
        return found

    def drop(self, server_round: int) -> None:
        """Remove a round's captures."""
        shutil.rmtree(self.path / f"round-{server_round:05d}", ignore_errors=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def drop_after(self, committed: int) -> None:
        """Remove the captures of rounds that were never committed; 0 or less removes all."""
        for server_round in self.rounds():
            if server_round > committed:
                self.drop(server_round)

    def rounds(self) -> list[int]:
        """Return the rounds of which something is kept, in order."""
        entries = self.path.iterdir() if self.path.is_dir() else ()
        return sorted(int(m[1]) for e in entries if (m := _ROUND.fullmatch(e.name)))


def find_captures(path: Path) -> list[Path]:
    """Return the captures that a user means, by round and client.

    Args:
        path: a capture, a folder of some, or a run's folder.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} doesn't exist: name a capture, a folder of them, or a run's")
    root = path / "captures" if (path / "captures").is_dir() else path
    rounds = [each for each in sorted(root.glob("round-*")) if each.is_dir()]
    found = sorted(file for each in rounds for file in each.iterdir() if _is_capture(file))
    found = found or sorted(file for file in root.iterdir() if _is_capture(file))
    if not found:
        raise UserError(
            f"{path} holds no captures: a run keeps them with `[server] capture = true`, and "
            "`fl-sim capture` makes one of anyone's update"
        )
    return found


def run_of(capture: Path) -> Path | None:
    """Return the folder of the run that a capture lies in; None where it lies in none."""
    if _CLIENT.fullmatch(capture.name) is None:
        return None
    captures = capture.resolve().parent.parent
    is_run = captures.name == "captures" and (captures.parent / "scenario.json").is_file()
    return captures.parent if is_run else None


def _is_capture(file: Path) -> bool:
    return file.suffix == ".safetensors" and not file.name.startswith("weights-")
