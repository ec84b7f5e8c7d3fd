"""Rounds whose records aren't all in the log yet: what was found, and what is still owed.

All of it is on the disk, so that a kill loses nothing, and memory holds one round at a time. A
round's own file says what the round itself found, and which attacks on which clients are owed; each
client's attacks leave an answer beside it. When nothing is owed any more the round goes to the log
as a whole, in order, and its files go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from fl_sim.atomic import write_atomically
from fl_sim.errors import UserError
from fl_sim.leakage.findings import Finding
from fl_sim.leakage.records import LeakageRecord
from fl_sim.tensor_file import pack, read_bytes, unpack

FINDINGS, VERSION = "findings", 1
Owed = Mapping[int, Sequence[int]]
"""Client -> the numbers of the attacks on its update that are left for after the round."""
_ROUND = re.compile(r"round-(\d+)\.safetensors")


class Left(NamedTuple):
    """Rounds that aren't in the log yet, and updates that are still to be attacked."""

    rounds: int = 0
    updates: int = 0


@dataclass(frozen=True)
class PendingRounds:
    """The folder `pending/` of a run.

    Args:
        path: where it is, or will be.
    """

    path: Path

    def keep(self, server_round: int, findings: Sequence[Finding], owed: Owed) -> None:
        """Write down what a round found, and what it owes, before it is committed."""
        self.path.mkdir(exist_ok=True)
        write_findings_file(self._file(server_round), findings, owed)

    def rounds(self) -> list[int]:
        """Return the rounds that aren't in the log yet, in order."""
        entries = self.path.iterdir() if self.path.is_dir() else ()
        return sorted(int(m[1]) for e in entries if (m := _ROUND.fullmatch(e.name)))

    def owed(self, server_round: int) -> Owed:
        """Return what of a round is still to be attacked.

        Raises:
            UserError: its file is damaged.
        """
        _, owed = read_findings_file(self._file(server_round))
        return {c: plans for c, plans in owed.items() if not self.answer(server_round, c).exists()}

    def left(self, committed: int) -> Left:
        """Return what is left to do of the rounds up to a committed one.

        Raises:
            UserError: a file is damaged.
        """
        rounds = [at for at in self.rounds() if 0 < at <= committed]
        return Left(len(rounds), sum(len(self.owed(at)) for at in rounds))

    def answer(self, server_round: int, client: int) -> Path:
        """Return where the findings of a client's attacks go."""
        return self.path / f"round-{server_round:05d}-client-{client:05d}.safetensors"

    def findings(self, server_round: int) -> list[Finding]:
        """Return all findings of a round that owes nothing any more, in the order of a round.

        Raises:
            UserError: a file is missing or damaged.
        """
        findings, owed = read_findings_file(self._file(server_round))
        for client in owed:
            findings += read_findings_file(self.answer(server_round, client))[0]
        return sorted(findings, key=_turn)

    def drop(self, server_round: int) -> None:
        """Remove a round's files, its own first: without that, the rest is nothing."""
        self._file(server_round).unlink(missing_ok=True)
        for answer in self.path.glob(f"round-{server_round:05d}-client-*"):
            answer.unlink()
        self._remove_if_empty()

    def drop_after(self, committed: int) -> None:
        """Remove rounds that were never committed, and what a kill left half done."""
        kept = {f"round-{r:05d}" for r in self.rounds() if r <= committed}
        for entry in self.path.iterdir() if self.path.is_dir() else ():
            if entry.suffix == ".tmp" or entry.name[:11] not in kept:
                entry.unlink()
        self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def _file(self, server_round: int) -> Path:
        return self.path / f"round-{server_round:05d}.safetensors"


def _turn(finding: Finding) -> tuple[int, int]:
    """Return what a round goes by: client after client, attack after attack."""
    return finding.record.client or 0, finding.record.attack or 0


def write_findings_file(path: Path, findings: Sequence[Finding], owed: Owed | None = None) -> None:
    """Write findings to a file, as a whole or not at all."""
    about = {
        "records": [finding.record.to_json() for finding in findings],
        "owed": {str(client): list(plans) for client, plans in (owed or {}).items()},
    }
    tensors = {
        f"{position}/{name}": tensor
        for position, finding in enumerate(findings)
        for name, tensor in finding.tensors.items()
    }
    write_atomically(path, pack(FINDINGS, VERSION, about, tensors))


def read_findings_file(path: Path) -> tuple[list[Finding], dict[int, list[int]]]:
    """Return the findings in a file, and what is owed.

    Raises:
        UserError: the file is missing or damaged.
    """
    data = read_bytes(path, "pending file")
    try:
        about, tensors = unpack(data, FINDINGS, VERSION)
        owed = {int(client): [*map(int, plans)] for client, plans in about["owed"].items()}
        records = [LeakageRecord(**json.loads(line)) for line in about["records"]]
        held: list[dict[str, Tensor]] = [{} for _ in records]
        for name, tensor in tensors.items():
            position, _, own = name.partition("/")
            held[int(position)][own] = tensor
    except (UserError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"pending file {path} can't be read: {error}") from error
    return [Finding(record, kept) for record, kept in zip(records, held, strict=True)], owed
