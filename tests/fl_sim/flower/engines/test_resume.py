"""A run that is killed, wherever it is, and resumed leaves what an unbroken one leaves."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_sim import run_folder
from fl_sim.flower import client
from fl_sim.flower.client import train_locally
from fl_sim.flower.run import run
from fl_sim.leakage.records import append_lines
from fl_sim.run_folder import RunFolder
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]
Outcome = dict[str, str | bytes]
OutcomeOf = Callable[[Path], Outcome]
Command = Callable[..., list[str]]
FlSim = Callable[..., Any]

# Two clients of three, so that sampling counts; a guess for an attack, which takes no time.
QUICK = (
    "rounds=2",
    "images=1",
    "client.fraction=0.67",
    "attack.0.label=third_party:Draws",
    'defense=[{name="dp-noise", clipping_norm=0.1, noise_multiplier=0.1}]',
)
STRATEGIES = ["fedavg", "fedadam"]
KEEPING = 'defense=[{name="third_party:Velocity"}, {name="third_party:LargestEntries"}]'
EPOCHS = (
    "client.local_epochs=2\nclient.batch_size=6\ndata.examples_per_client=8\n"
    'defense=[{name="label-smoothing", smoothing=[0.1, 0.5]}, {name="mixup"}]'
)
logger = logging.getLogger(__name__)


class Killed(BaseException):
    """Ends a run where it stands; nobody catches it."""


@dataclass
class Kill:
    """Ends a run at one of its writes to the disk.

    Args:
        at: before which write, counted from 1; 0 lets all pass.
        arrived: for a kill while lines are appended, the share of their bytes that is written.
    """

    at: int = 0
    arrived: float = 0.0
    writes: int = 0
    appends: list[int] = field(default_factory=list)

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts as a write."""

        def counted(*arguments: Any, **options: Any) -> Any:
            self.writes += 1
            if self.writes == self.at:
                raise Killed
            return function(*arguments, **options)

        return counted

    def append(self, path: Path, lines: Sequence[str]) -> None:
        """Append lines, or a part of them."""
        self.writes += 1
        self.appends.append(self.writes)
        if self.writes != self.at:
            return append_lines(path, lines)
        data = "".join(f"{line}\n" for line in lines).encode()
        with path.open("ab") as file:
            file.write(data[: int(self.arrived * len(data))])
        raise Killed


@contextmanager
def killing(kill: Kill) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "append_lines", kill.append)
        patch.setattr(os, "fsync", kill.before(os.fsync))
        patch.setattr(os, "replace", kill.before(os.replace))
        patch.setattr(Path, "unlink", kill.before(Path.unlink))
        patch.setattr(np, "savez", kill.before(np.savez))
        yield


Unbroken = tuple[Scenario, Outcome, Kill]


@pytest.fixture(
    scope="module",
    params=[*STRATEGIES, KEEPING, EPOCHS],
    ids=[*STRATEGIES, "keeping", "epochs"],
)
def unbroken(
    request: pytest.FixtureRequest,
    tiny: Tiny,
    outcome_of: OutcomeOf,
    tmp_path_factory: pytest.TempPathFactory,
) -> Unbroken:
    """Return a scenario, what its unbroken run leaves, and the writes that takes."""
    is_strategy = request.param in STRATEGIES
    changes = [f"server.strategy={request.param}"] if is_strategy else request.param.split("\n")
    scenario, kill = tiny(*QUICK, *changes), Kill()
    folder = tmp_path_factory.mktemp("unbroken")
    with killing(kill):
        run(scenario, folder)
    assert kill.writes > 20
    assert len(kill.appends) == 3 + 2  # rounds 0, 1, 2; records of rounds 1, 2
    return scenario, outcome_of(folder), kill


@pytest.mark.parametrize("arrived", [0.0, 0.3, 0.8, 0.9999])
def test_a_kill_at_any_write_loses_nothing(
    unbroken: Unbroken, outcome_of: OutcomeOf, tmp_path: Path, arrived: float
) -> None:
    """Of lines that are just being written a part arrives: the last one is torn, others miss."""
    scenario, expected, counted = unbroken
    committed = str(expected["rounds.jsonl"])
    for at in counted.appends if arrived else range(1, counted.writes + 1):
        folder = tmp_path / str(at)
        with killing(Kill(at, arrived)), pytest.raises(Killed):
            run(scenario, folder)
        *whole, _ = str(outcome_of(folder).get("rounds.jsonl", "")).split("\n")
        assert committed.startswith("\n".join(whole))
        run(scenario, folder, resume=True)
        assert outcome_of(folder) == expected, f"killed at write {at}"


@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_is_killed_again_and_again_comes_to_its_end(
    unbroken: Unbroken, outcome_of: OutcomeOf, tmp_path: Path, seed: int
) -> None:
    scenario, expected, counted = unbroken
    draws = random.Random(seed)
    for _attempt in range(100):
        try:
            with killing(
                Kill(draws.randint(1, counted.writes * 2 // 3), draws.choice([0.0, 0.5, 0.9999]))
            ):
                run(scenario, tmp_path, resume=True)
            break
        except Killed:
            pass
    assert outcome_of(tmp_path) == expected


def test_a_kill_among_the_clients_loses_nothing(
    unbroken: Unbroken, outcome_of: OutcomeOf, tmp_path: Path
) -> None:
    scenario, expected, _ = unbroken
    for at in [(server_round, reply) for server_round in (1, 2) for reply in (1, 2)]:

        def on_progress(
            server_round: int, replies: int, clients: int, at: tuple[int, int] = at
        ) -> None:
            if (server_round, replies) == at:
                raise Killed

        folder = tmp_path / str(at)
        with pytest.raises(Killed):
            run(scenario, folder, on_progress=on_progress)
        run(scenario, folder, resume=True)
        assert outcome_of(folder) == expected


def test_a_resumed_run_does_not_train_again_what_is_committed(
    unbroken: Unbroken, outcome_of: OutcomeOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario, expected, counted = unbroken
    with killing(Kill(counted.appends[-1])), pytest.raises(Killed):
        run(scenario, tmp_path)
    with RunFolder.open(tmp_path, scenario, resume=True) as folder:
        assert folder.last_round() == 1
    trained = []

    def train(scenario: Scenario, number: int, server_round: int, *rest: Any) -> Any:
        trained.append(server_round)
        return train_locally(scenario, number, server_round, *rest)

    monkeypatch.setattr(client, "train_locally", train)
    run(scenario, tmp_path, resume=True)
    assert trained == [2, 2]
    assert outcome_of(tmp_path) == expected


@pytest.fixture
def command(tiny_file: Path) -> Command:
    """Return a function from overrides to the arguments of `fl-sim` that run the tiny scenario."""

    def arguments(*overrides: str) -> list[str]:
        return ["run", str(tiny_file), *(f"--set={override}" for override in overrides)]

    return arguments


def test_resuming_a_finished_run_just_builds_the_report(
    fl_sim: FlSim,
    command: Command,
    outcome_of: OutcomeOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    first = fl_sim(*command(*QUICK), "--out", out)
    assert first.status == 0, first.stderr
    before, seconds = outcome_of(out), (out / "rounds.jsonl").read_bytes()
    (out / "report.html").unlink()

    def train(*arguments: Any) -> Any:
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(client, "train_locally", train)
    assert fl_sim(*command(*QUICK), "--out", out, "--resume") == first
    assert outcome_of(out) == before
    assert (out / "rounds.jsonl").read_bytes() == seconds
    assert (out / "report.html").exists()


def test_an_interrupted_run_says_how_to_go_on_and_does(
    fl_sim: FlSim, command: Command, tiny: Tiny, outcome_of: OutcomeOf, tmp_path: Path
) -> None:
    out = tmp_path / "run"

    def interrupt(scenario: Scenario, number: int, server_round: int, *rest: Any) -> Any:
        if server_round == 2:
            raise KeyboardInterrupt
        return train_locally(scenario, number, server_round, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "train_locally", interrupt)
        interrupted = fl_sim(*command(*QUICK), "--out", out)
    sentence = f"interrupted; the same command with --resume --out {out} goes on from there"
    assert (interrupted.status, interrupted.stderr) == (130, f"fl-sim: {sentence}\n")
    assert fl_sim(*command(*QUICK), "--out", out, "--resume").status == 0
    run(tiny(*QUICK), tmp_path / "unbroken")
    assert outcome_of(out) == outcome_of(tmp_path / "unbroken")


KILLS, ROUNDS = 12, 320


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_kill_9_at_random_moments(
    fl_sim: FlSim,
    command: Command,
    outcome_of: OutcomeOf,
    tmp_path: Path,
    tiny_file: Path,
    strategy: str,
) -> None:
    """Twelve kills of a process: of each three, one while it starts, two in later rounds."""
    overrides = [*QUICK[1:-1], f"rounds={ROUNDS}", f"server.strategy={strategy}"]
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    unbroken = Process(command(*overrides), whole, tiny_file)
    second = fl_sim(*command(*overrides), "--out", whole, "--resume")
    assert (second.status, second.stderr) == (2, f"fl-sim: {whole} is in use by another run\n")
    unbroken.wait()
    draws = random.Random(f"kill {strategy}")
    lines: list[int] = []
    for number in range(KILLS):
        process = Process(command(*overrides), broken, tiny_file)
        if number % 3:
            process.wait_for_rounds(draws.randint(10, 45))
        time.sleep(draws.uniform(0, 0.1 if number % 3 else 0.7))
        assert process.kill(), "the run must not be over before the last kill"
        lines.append(process.lines())
    Process(command(*overrides), broken, tiny_file).wait()
    logger.info("%s: killed after rounds %s of %d", strategy, [n - 1 for n in lines], ROUNDS)
    assert lines == sorted(lines)
    assert ROUNDS / 3 < lines[-1] < ROUNDS
    assert outcome_of(broken) == outcome_of(whole)
    assert json.loads((broken / "rounds.jsonl").read_text().splitlines()[-1])["round"] == ROUNDS


class Process:
    """`fl-sim run … --resume` in a process of its own, from the moment that it opens its folder."""

    def __init__(self, arguments: list[str], out: Path, tiny_file: Path) -> None:
        out.mkdir(exist_ok=True)
        (out / ".lock").unlink(missing_ok=True)
        paths = [str(tiny_file.parent), os.environ.get("PYTHONPATH", "")]
        command = [sys.executable, "-m", "fl_sim.cli", *arguments, "--out", str(out), "--resume"]
        self._errors = out.with_suffix(".err")
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        self._rounds = out / "rounds.jsonl"
        self._lines_before = self.lines()
        self._wait_until((out / ".lock").exists)

    def lines(self) -> int:
        """Return how many whole lines tell of rounds."""
        return self._rounds.read_bytes().count(b"\n") if self._rounds.exists() else 0

    def wait_for_rounds(self, count: int) -> None:
        """Wait until it has committed so many."""
        self._wait_until(lambda: self.lines() >= self._lines_before + count)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self._process.poll() is None, self._errors.read_text()
            time.sleep(0.005)

    def wait(self) -> None:
        """Wait until it is done."""
        assert self._process.wait(timeout=300) == 0, self._errors.read_text()

    def kill(self) -> bool:
        """Kill it, and say whether it was still running."""
        was_running = self._process.poll() is None
        self._process.kill()
        self._process.wait()
        return was_running
