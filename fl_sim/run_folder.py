"""A run's folder: what it holds, how a round is committed, and how a killed run goes on.

The line in `rounds.jsonl` commits a round. Before it, the round's lines in `leakage.jsonl` and the
checkpoint are on the disk; whatever stands there beyond the last commit is cut when a run resumes.
Where attacks run after the round, its lines wait in `pending/`, beside what is owed of them, and
come to `leakage.jsonl` as a whole, round by round.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fl_sim.atomic import write_atomically
from fl_sim.capture.folder import CaptureFolder
from fl_sim.capture.pending import PendingRounds
from fl_sim.errors import UserError
from fl_sim.leakage.records import append_lines, read_lines, truncate_after
from fl_sim.origin import AUDIT, REPLAY, when_and_with
from fl_sim.scenario import Scenario
from fl_sim.scenario.schema import determining_of

Arrays = dict[str, NDArray[Any]]
UNSET = object()
NOT_RUNS = {AUDIT: "the audit of an app", REPLAY: "an attack on captures"}


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from.

    Args:
        server_round: the last committed round; 0 is the initial model.
        weights: the global model's arrays.
        state: the strategy's, as `fl_sim.flower.strategy.state` packs it.
    """

    server_round: int
    weights: Arrays
    state: Mapping[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """An open run folder.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def leakage(self) -> Path:
        """One line for each record."""
        return self.path / "leakage.jsonl"

    @property
    def rounds(self) -> Path:
        """One line for each committed round; round 0 is the initial model."""
        return self.path / "rounds.jsonl"

    @property
    def images(self) -> Path:
        """Recovered and true labels and images, as NumPy archives."""
        return self.path / "images"

    @property
    def captures(self) -> Path:
        """What the server saw of each update, where it is kept."""
        return self.path / "captures"

    @property
    def pending(self) -> Path:
        """What committed rounds found and owe that isn't in `leakage.jsonl` yet."""
        return self.path / "pending"

    @property
    def client_state(self) -> Path:
        """What clients on this machine keep to themselves: beside the folder, not in it.

        The folder is the server's, and is what people pass on. It outlives the last round: the run
        may go on with more of them.
        """
        path = self.path.resolve()
        return path.with_name(f"{path.name}.client-state")

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, scenario: Scenario, *, resume: bool) -> Iterator[RunFolder]:
        """Start a run in a new or empty folder, or go on with the same run in its own.

        The same run may have more rounds than before.

        Raises:
            UserError: the folder holds something else, or another process runs in it.
        """
        path.mkdir(parents=True, exist_ok=True)
        described = path / "scenario.json"
        foreign = sorted(entry.name for entry in path.iterdir() if entry.name != ".lock")
        if described.exists():
            description = _same_run(described, scenario, resume=resume)
        elif foreign and foreign != ["scenario.json.tmp"]:
            raise UserError(f"{path} must be empty or hold a run; it holds {foreign[0]!r}")
        with locked(path):
            folder = cls(path)
            if not described.exists():
                _describe(described, _description(scenario))
            elif description["scenario"].get("rounds") != scenario.rounds:
                longer = description["scenario"] | {"rounds": scenario.rounds}
                _describe(described, description | {"scenario": longer})
            folder.images.mkdir(exist_ok=True)
            (path / "checkpoint").mkdir(exist_ok=True)
            yield folder

    def last_round(self) -> int | None:
        """Return the last committed round; None before the initial model is."""
        committed = read_lines(self.rounds)
        return int(committed[-1]["round"]) if committed else None

    def accepted_replies(self) -> int:
        """Return how many replies the committed rounds were made of."""
        return sum(int(line.get("replies") or 0) for line in read_lines(self.rounds))

    def lost_all_replies(self) -> bool:
        """Say whether there were replies and every one was left out."""
        left_out = sum(int(line.get("quarantined") or 0) for line in read_lines(self.rounds))
        return left_out > 0 and not self.accepted_replies()

    def restore(self) -> Checkpoint | None:
        """Cut everything beyond the last commit, and return the checkpoint to go on from.

        Raises:
            UserError: the checkpoint is missing or damaged.
        """
        last = self.last_round()
        truncate_after(self.rounds, lambda line: True)
        committed = -1 if last is None else last
        CaptureFolder(self.captures).drop_after(committed)
        pending = PendingRounds(self.pending)
        pending.drop_after(committed)
        logged = min([committed + 1, *pending.rounds()])
        truncate_after(self.leakage, lambda line: line["round"] < logged)
        if last is None:
            return None
        file = self._checkpoint(last)
        try:
            arrays = load_file(file)
            state = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
            weights = {name: arrays.pop(f"model/{name}") for name in state["order"]}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UserError(f"checkpoint {file} can't be read: {error}") from error
        self._drop_checkpoints_but(file)
        return Checkpoint(last, weights, {**state, "arrays": arrays})

    def commit(self, line: Mapping[str, Any], weights: Arrays, state: Mapping[str, Any]) -> None:
        """Save the checkpoint, then commit the round by its line, then drop older checkpoints.

        Args:
            line: for `rounds.jsonl`, with the key "round".
            weights: the global model's arrays.
            state: the strategy's: "arrays" (name -> array) and JSON-able values.
        """
        file = self._checkpoint(int(line["round"]))
        scalars = {key: value for key, value in state.items() if key != "arrays"}
        held = {f"model/{name}": array for name, array in weights.items()}
        held |= state.get("arrays", {})
        # Not np.ascontiguousarray, which gives an array of no dimension one.
        arrays = {name: np.asarray(array, order="C") for name, array in held.items()}
        write_atomically(file, save(arrays))  # save_file hides a full disk behind its own error
        described = json.dumps({**scalars, "order": list(weights)})
        write_atomically(file.with_suffix(".json"), described.encode())
        append_lines(self.rounds, [json.dumps(line, allow_nan=False)])
        self._drop_checkpoints_but(file)

    def log(self, lines: Sequence[str]) -> None:
        """Append records to `leakage.jsonl`."""
        append_lines(self.leakage, lines)

    def _drop_checkpoints_but(self, kept: Path) -> None:
        for other in kept.parent.iterdir():
            if other.stem != kept.stem:
                other.unlink()

    def _checkpoint(self, server_round: int) -> Path:
        return self.path / "checkpoint" / f"round-{server_round:05d}.safetensors"


def _same_run(described: Path, scenario: Scenario, *, resume: bool) -> dict[str, Any]:
    """Return a folder's description, if it is that of the scenario with as many rounds or fewer."""
    folder = described.parent
    try:
        description: dict[str, Any] = json.loads(described.read_text(encoding="utf-8"))
        if description.get("kind") in NOT_RUNS:
            held = NOT_RUNS[description["kind"]]
            raise UserError(f"{folder} holds {held}, not a run; choose another --out")
        digest, ours = description["digest"], scenario.determining()
        theirs = determining_of(description["scenario"])
        different = digest != scenario.digest() and difference(theirs, ours)
        rounds = int(description["scenario"].get("rounds", 0))
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{described} isn't a run's description: {error}") from error
    if digest != scenario.digest():
        raise UserError(
            f"{folder} holds another run: {different or 'of another version of fl-sim'}; "
            "choose another --out"
        )
    if not resume:
        raise UserError(f"{folder} holds this run already; go on with --resume")
    if scenario.rounds < rounds:
        raise UserError(
            f"rounds must be at least {rounds}, as in {folder}: a run that goes on can get longer "
            f"only, found {scenario.rounds}"
        )
    return description


def _describe(described: Path, description: Mapping[str, Any]) -> None:
    write_atomically(described, (json.dumps(description, indent=2) + "\n").encode())


def difference(there: Any, here: Any, key: str = "") -> str | None:
    """Say at which key of the scenario two values first differ; None where they don't."""
    if isinstance(there, list) and isinstance(here, list):
        there, here = dict(enumerate(there)), dict(enumerate(here))
    if isinstance(there, dict) and isinstance(here, dict):
        found = (
            difference(there.get(k, UNSET), here.get(k, UNSET), f"{key}.{k}".lstrip("."))
            for k in {**there, **here}
        )
        return next((difference for difference in found if difference), None)
    if there == here:
        return None
    left, right = ("isn't set" if v is UNSET else f"is {json.dumps(v)}" for v in (there, here))
    return f"{key} {left} there and {right} here"


def _description(scenario: Scenario) -> dict[str, Any]:
    return {
        "scenario": scenario.model_dump(mode="json"),
        "digest": scenario.digest(),
        **when_and_with(),
    }


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock goes with the process, however it ends."""
    with (path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{path} is in use by another run") from error
        yield
