"""A run folder as it is read: the lines that a run wrote, finished or not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fl_sim.capture.pending import Left, PendingRounds
from fl_sim.errors import UserError
from fl_sim.leakage.leaks import Record
from fl_sim.leakage.records import LeakageRecord, read_lines
from fl_sim.leakage.summary import AttackSummary, summarize
from fl_sim.origin import AUDIT


class RecordedRun(NamedTuple):
    """What a run folder holds, images apart; `left` is what its attacks still owe."""

    described: dict[str, Any]
    records: list[Record]
    rounds: list[Record]
    summaries: list[AttackSummary]
    left: Left = Left()

    @classmethod
    def read(cls, directory: Path) -> RecordedRun:
        """Read the folder's files.

        Raises:
            UserError: it has no `scenario.json`, or one of its files isn't what it should be.
        """
        described, records = _described(directory), _records(directory)
        rounds = _lines(directory / "rounds.jsonl")
        left = PendingRounds(directory / "pending").left(_last_of(rounds))
        return cls(described, records, rounds, summarize(records), left)

    @property
    def scenario(self) -> dict[str, Any]:
        """The scenario, or what was told of one's own app."""
        found: dict[str, Any] = self.described["scenario"]
        return found

    @property
    def is_audit(self) -> bool:
        """Whether it is an audit of one's own app."""
        return is_audit_of(self.described)

    @property
    def last_round(self) -> int:
        """The last complete round, 0 before the first."""
        return _last_of(self.rounds)

    @property
    def ended_by_target(self) -> bool:
        """Whether one more round would have taken ε beyond `privacy.epsilon_target`."""
        target = (self.scenario.get("privacy") or {}).get("epsilon_target")
        following = self.rounds[-1].get("next_epsilon") if self.rounds else None
        return target is not None and following is not None and following > target

    @property
    def is_finished(self) -> bool:
        """Whether no round and no attack is left; an audit of an app has no planned end."""
        planned = int(self.scenario.get("rounds") or 0)
        if self.left.rounds:
            return False
        return self.is_audit or self.last_round >= planned or self.ended_by_target

    @property
    def has_truth(self) -> bool:
        """Whether its records are scored against the truth."""
        return not self.is_audit or bool(self.scenario.get("has_judge"))


def _last_of(rounds: Sequence[Record]) -> int:
    return max((line["round"] for line in rounds), default=0)


def is_audit_of(described: Record) -> bool:
    """Say whether a run's description is that of an audit of one's own app."""
    return bool(described.get("kind") == AUDIT)


def _described(directory: Path) -> dict[str, Any]:
    path = directory / "scenario.json"
    if not path.is_file():
        raise UserError(f"{directory} is not a run folder: it has no scenario.json")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} isn't valid JSON: {error}") from error
    if not isinstance(run, dict) or not isinstance(run.get("scenario"), dict):
        raise UserError(f'{path} must hold an object with the key "scenario"')
    return run


def _records(directory: Path) -> list[Record]:
    """Return the lines of `leakage.jsonl`, with the keys that came after they were written."""
    keys = dict.fromkeys(field.name for field in dataclasses.fields(LeakageRecord))
    records: list[dict[str, Any]] = [
        keys | dict(line) for line in _lines(directory / "leakage.jsonl")
    ]
    for record in records:
        for part in ("label", "image"):
            if record[f"{part}_status"] == "RECOVERED":
                record[f"{part}_certainty"] = "vouched"
    return [*records]


def _lines(path: Path) -> list[Record]:
    try:
        return list(read_lines(path))
    except ValueError as error:
        raise UserError(str(error)) from error
