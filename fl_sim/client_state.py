"""What a client's defenses keep from round to round: files on the client's own disk.

Neither the server nor the wire nor the run's records hold any of it. A file is named after the
round that left it, so that a resumed run goes on from what the committed rounds left. A client
whose files are gone starts afresh.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from defenses.base import NOTHING, States
from fl_sim.atomic import write_atomically
from fl_sim.errors import UserError
from fl_sim.scenario import Scenario


@dataclass(frozen=True)
class ClientState:
    """One client's files in one run; there is none until a defense keeps something.

    Args:
        client: whose.
        folder: the client's own, made when there is something to keep; None where it has none.
    """

    client: int
    folder: Path | None

    @classmethod
    def of(cls, scenario: Scenario, client: int, folder: str) -> ClientState:
        """Find a client's files of a scenario's run in a folder for all of them; "" is none."""
        own = Path(folder) / _digest(scenario) / f"client-{client:05d}" if folder else None
        return cls(client, own)

    def before(self, server_round: int, device: torch.device) -> States:
        """Return what the last round before this one left; nothing if none left anything.

        Args:
            server_round: from 1.
            device: of the tensors.

        Raises:
            UserError: its file is damaged.
        """
        earlier = [r for r in self._rounds() if r < server_round]
        if not earlier:
            return NOTHING
        file = self._file(earlier[-1])
        try:
            states = unpack(file.read_bytes())
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"client state {file} can't be read: {error}") from error
        return {
            stage: {name: tensor.to(device) for name, tensor in state.items()}
            for stage, state in states.items()
        }

    def keep(self, server_round: int, states: States) -> None:
        """Write down what a round leaves, and drop what no resumed run can need any more.

        The round isn't committed yet, but the one before is: what was there before stays, too.

        Raises:
            UserError: there is no folder, or the state can't be saved.
        """
        if self.folder is None:
            raise UserError(
                f"client {self.client} must have a folder for what its defenses keep: client-state "
                "of its node's or the run's configuration, found none"
            )
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._file(server_round), pack(states))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"client {self.client}'s state can't be saved: {reason}") from error
        earlier = [r for r in self._rounds() if r < server_round]
        for past in earlier[:-1]:
            self._file(past).unlink()

    def forget_after(self, committed: int) -> None:
        """Drop what rounds left that were never committed; -1 and 0 drop everything."""
        for server_round in self._rounds():
            if server_round > committed:
                self._file(server_round).unlink()

    def _rounds(self) -> list[int]:
        if self.folder is None or not self.folder.is_dir():
            return []
        files = self.folder.glob("round-*.safetensors")
        return sorted(int(file.stem.removeprefix("round-")) for file in files)

    def _file(self, server_round: int) -> Path:
        assert self.folder is not None
        return self.folder / f"round-{server_round:05d}.safetensors"


def pack(states: States) -> bytes:
    """Return states as the bytes of a safetensors file."""
    tensors = {
        # Numbered, since safetensors has an order of its own.
        f"{stage:04d}/{position:06d}/{name}": tensor.cpu().contiguous()
        for stage, state in states.items()
        for position, (name, tensor) in enumerate(state.items())
    }
    return save(tensors)


def unpack(data: bytes) -> dict[int, dict[str, Tensor]]:
    """Return the states in a file; a stage's empty one is left out.

    Raises:
        ValueError, SafetensorError: it isn't such a file.
    """
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in sorted(load(data).items()):
        stage, _, name = key.split("/", 2)
        states.setdefault(int(stage), {})[name] = tensor
    return states


@lru_cache(maxsize=4)
def _digest(scenario: Scenario) -> str:
    return scenario.digest()
