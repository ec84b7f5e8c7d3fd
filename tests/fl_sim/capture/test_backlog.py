"""Attacks that no round waits for: the same records, whenever they run and whatever is killed."""

from __future__ import annotations

import html
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_sim import run_folder
from fl_sim.capture import backlog
from fl_sim.capture.pending import PendingRounds
from fl_sim.capture.workers import Workers
from fl_sim.flower.run import run
from fl_sim.leakage.records import append_lines, read_lines
from fl_sim.report import headline
from fl_sim.results.recorded import RecordedRun
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]
OutcomeOf = Callable[[Path], dict[str, str | bytes]]
FlSim = Callable[..., Any]

BOTH = (
    "attack=[{label='third_party:Draws'}, {label='third_party:Formula', "
    "image='third_party:FormulaImage', when='after', clients=[0, 2]}]"
)
"""One attack in the round, one after it that leaves a client out."""


class Killed(BaseException):
    """Ends a run where it stands; nobody catches it."""


@contextmanager
def killing(at: int, share: float = 0.0) -> Iterator[list[int]]:
    """Count the writes to the disk, and end the run at one; of lines being appended, in the middle.

    Args:
        at: before which write, from 1; 0 for none.
        share: of appended lines' bytes that arrive.
    """
    writes = [0]

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            writes[0] += 1
            if writes[0] == at:
                raise Killed
            return function(*arguments, **options)

        return counted

    def append(path: Path, lines: Any) -> None:
        writes[0] += 1
        if writes[0] != at:
            return append_lines(path, lines)
        data = "".join(f"{line}\n" for line in lines).encode()
        with path.open("ab") as file:
            file.write(data[: int(share * len(data))])
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "append_lines", append)
        patch.setattr(os, "replace", before(os.replace))
        patch.setattr(Path, "unlink", before(Path.unlink))
        patch.setattr(np, "savez", before(np.savez))
        yield writes


@pytest.mark.usefixtures("here")
def test_when_an_attack_runs_changes_nothing_in_the_outcome(
    tiny: Tiny, outcome_of: OutcomeOf, tmp_path: Path
) -> None:
    scenario = tiny(BOTH)
    inline = scenario.with_changes({"attack.1.when": "round"})
    assert inline.digest() == scenario.digest()
    run(scenario, tmp_path / "after")
    run(inline, tmp_path / "inline")
    assert outcome_of(tmp_path / "after") == outcome_of(tmp_path / "inline")
    left = {path.name for path in (tmp_path / "after").iterdir()}
    assert left.isdisjoint({"captures", "pending"})


@pytest.mark.usefixtures("here")
def test_what_declares_itself_long_runs_after_the_round_unless_told(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    landed = []
    keep = PendingRounds.keep

    def note(self: PendingRounds, server_round: int, findings: Any, owed: Any) -> None:
        landed.append((server_round, dict(owed)))
        keep(self, server_round, findings, owed)

    monkeypatch.setattr(PendingRounds, "keep", note)
    run(tiny("attack.0.label=third_party:Takes", "rounds=1"), tmp_path / "long")
    assert landed == [(0, {}), (1, {0: [0], 1: [0], 2: [0]})]
    landed.clear()
    told = tiny("attack.0.label=third_party:Takes", "attack.0.when=round", "rounds=1")
    run(told, tmp_path / "told")
    assert landed == []


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("keeps", "every"),
    [
        (False, 5),
        pytest.param(False, 1, marks=pytest.mark.slow),
        pytest.param(True, 1, marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_any_write_loses_nothing(
    tiny: Tiny, outcome_of: OutcomeOf, tmp_path: Path, keeps: bool, every: int
) -> None:
    scenario = tiny(BOTH, "rounds=2", "images=3", f"server.capture={str(keeps).lower()}")
    with killing(0) as writes:
        run(scenario, tmp_path / "whole")
    expected = outcome_of(tmp_path / "whole")
    assert writes[0] > 40
    for at in range(1, writes[0] + 1, every):
        folder = tmp_path / str(at)
        with killing(at, share=(0.0, 0.4, 0.999)[at % 3]), pytest.raises(Killed):
            run(scenario, folder)
        run(scenario, folder, resume=True)
        assert outcome_of(folder) == expected, f"killed at write {at}"
        assert not (folder / "pending").exists()
        assert len(list(folder.glob("captures/*/client-*"))) == (6 if keeps else 0)


@pytest.mark.usefixtures("here")
def test_rounds_wait_where_too_much_is_owed(
    tiny: Tiny, outcome_of: OutcomeOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tiny(BOTH, "server.attack_queue=1"), tmp_path / "short")
    assert "more than 1 updates wait for their attacks" in caplog.text
    run(tiny(BOTH), tmp_path / "long")
    assert outcome_of(tmp_path / "short") == outcome_of(tmp_path / "long")


def test_what_is_owed_is_said_and_how_it_is_worked_off(
    fl_sim: FlSim, tiny_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["run", tiny_file, f"--set={BOTH}", "--set=rounds=2", "--out", out]

    def interrupt(self: backlog.Backlog) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workers, "submit", lambda *arguments: None)
        patch.setattr(backlog.Backlog, "settle", interrupt)
        broken = fl_sim(*command)
    assert (broken.status, broken.stderr) == (
        130,
        f"fl-sim: interrupted; the same command with --resume --out {out} goes on from there, and "
        "attacks the 4 updates that wait for it\n",
    )
    sentence = (
        "Attacks are pending: 4 updates are still to be attacked, and the records of 2 rounds "
        f"aren’t here yet. The same `fl-sim run` with `--resume --out {out}` works them off."
    )
    reported = fl_sim("report", out)
    assert (reported.status, reported.stderr) == (0, f"fl-sim: {sentence}\n")
    assert sentence in html.unescape((out / "report.html").read_text())
    assert headline(out) == "No update has been attacked yet."
    assert not RecordedRun.read(out).is_finished
    assert fl_sim(*command, "--resume").status == 0
    assert fl_sim("report", out).stderr == ""
    assert "pending" not in (out / "report.html").read_text()
    assert RecordedRun.read(out).is_finished


@pytest.mark.usefixtures("here")
def test_a_capture_that_is_lost_before_it_is_attacked_costs_its_record(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = tiny(BOTH, "rounds=1")

    def stop(self: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backlog.Backlog, "settle", stop)
        with pytest.raises(Killed):
            run(scenario, tmp_path)
    (tmp_path / "captures" / "round-00001" / "client-00002.safetensors").unlink()
    run(scenario, tmp_path, resume=True)
    records = read_lines(tmp_path / "leakage.jsonl")
    [lost] = [r for r in records if r["label_status"] == "FAILED"]
    assert (lost["client"], lost["attack"]) == (2, 1)
    assert "can't be read: No such file or directory" in lost["label_reason"]
    assert len(records) == 5


@pytest.mark.usefixtures("here")
def test_quarantined_replies_come_to_the_log_with_their_round(tiny: Tiny, tmp_path: Path) -> None:
    from fl_sim.errors import NothingAccepted

    spoilt = tiny(BOTH, "rounds=2", "defense=[{name='third_party:Spoils'}]")
    with pytest.raises(NothingAccepted):
        run(spoilt, tmp_path)
    assert len(read_lines(tmp_path / "leakage.jsonl")) == 6
    assert not (tmp_path / "pending").exists()


@pytest.mark.e2e
def test_an_attack_that_takes_its_process_down_costs_its_record(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny("attack=[{label='third_party:Dies'}]"), tmp_path)
    records = read_lines(tmp_path / "leakage.jsonl")
    assert len(records) == 9
    failed = [r for r in records if r["label_status"] == "FAILED"]
    assert failed
    assert {r["label_reason"] for r in failed} == {"the attack's process ended by signal 9"}
    assert {r["label_status"] for r in records} == {"FAILED", "RECOVERED"}


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="it looks for processes in /proc")
def test_processes_end_with_the_run_that_is_killed(tiny_file: Path, tmp_path: Path) -> None:
    process = Process(tiny_file, tmp_path, seconds=60.0)
    process.wait_for(lambda: len(process.workers()) == 2)
    workers = process.workers()
    process.kill()
    process.wait_for(lambda: not any(map(is_running, workers)))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


class Process:
    """A run of the tiny federation with an attack that takes its time, in a process of its own."""

    def __init__(
        self, tiny_file: Path, out: Path, *, seconds: float = 0.0, settings: Sequence[str] = ()
    ) -> None:
        self.out = out
        slow = (
            "attack.0.label=third_party:Takes",
            f"attack.0.label_options.seconds={seconds}",
            "rounds=3",
        )
        self._errors = out / "errors"
        paths = [str(tiny_file.parent), os.environ.get("PYTHONPATH", "")]
        command = [sys.executable, "-m", "fl_sim.cli", "run", str(tiny_file)]
        command += [f"--set={each}" for each in (*(settings or slow), "server.attack_jobs=2")]
        command += ["--resume", "--out", str(out / "run")]
        (out / "run").mkdir(exist_ok=True)
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def workers(self) -> list[int]:
        """Return the processes that attack."""
        children = Path(f"/proc/{self._process.pid}/task").glob("*/children")
        pids = [int(pid) for each in children for pid in each.read_text().split()]
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in pids}
        return [pid for pid, command in commands.items() if "fl_sim.capture.worker" in command]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait, up to two minutes."""
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, self._errors.read_text()
            time.sleep(0.01)

    def kill(self) -> bool:
        """Kill it, and say whether it was still running."""
        was_running = self._process.poll() is None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        return was_running

    def end(self) -> None:
        """Wait until it is done."""
        assert self._process.wait(timeout=300) == 0, self._errors.read_text()

    def answers(self) -> int:
        """Return how many updates have been attacked, their rounds not yet in the log."""
        return len(list((self.out / "run" / "pending").glob("*-client-*.safetensors")))

    def lines(self) -> int:
        """Return how many records are in the log."""
        return len(read_lines(self.out / "run" / "leakage.jsonl"))


@pytest.mark.slow
@pytest.mark.e2e
def test_killed_twice_in_the_middle_of_slow_attacks_the_records_are_the_same(
    tiny: Tiny, tiny_file: Path, outcome_of: OutcomeOf, tmp_path: Path
) -> None:
    for name in ("broken", "whole"):
        (tmp_path / name).mkdir()
    whole = Process(tiny_file, tmp_path / "whole", seconds=0.3)
    whole.end()
    first = Process(tiny_file, tmp_path / "broken", seconds=0.3)
    first.wait_for(lambda: first.answers() >= 1)  # of round 1, which isn't whole yet
    assert first.kill()
    second = Process(tiny_file, tmp_path / "broken", seconds=0.3)
    second.wait_for(lambda: second.lines() >= 3 and second.answers() >= 1)
    assert second.kill()
    Process(tiny_file, tmp_path / "broken", seconds=0.3).end()
    assert outcome_of(tmp_path / "broken" / "run") == outcome_of(tmp_path / "whole" / "run")
    assert not (tmp_path / "broken" / "run" / "pending").exists()
    run(
        tiny(
            "attack.0.label=third_party:Takes",
            "attack.0.label_options.seconds=0.3",
            "attack.0.when=round",
        ),
        tmp_path / "inline",
    )
    assert outcome_of(tmp_path / "inline") == outcome_of(tmp_path / "whole" / "run")


@pytest.mark.slow
@pytest.mark.e2e
def test_rounds_go_on_while_images_are_searched_and_a_kill_changes_no_record(
    tiny_file: Path, outcome_of: OutcomeOf, tmp_path: Path
) -> None:
    settings = (
        "attack=[{label='third_party:Formula', image='inverting-gradients', "
        "image_options={iterations=150}}]",
        "data.clients=10",
        "data.options={examples=200}",
        "rounds=3",
    )
    for name in ("broken", "whole"):
        (tmp_path / name).mkdir()
    Process(tiny_file, tmp_path / "whole", settings=settings).end()
    log = read_lines(tmp_path / "whole" / "run" / "leakage.jsonl")
    assert {r["image_attack"] for r in log} == {"inverting-gradients"}
    assert [r["round"] for r in log] == [1] * 10 + [2] * 10 + [3] * 10
    assert {r["gradient_evaluations"] for r in log} == {150}
    first = Process(tiny_file, tmp_path / "broken", settings=settings)
    first.wait_for(lambda: first.answers() >= 1)
    rounds = read_lines(tmp_path / "broken" / "run" / "rounds.jsonl")
    assert first.kill()
    assert len(rounds) > 1  # while the first round's attacks were at work
    assert first.lines() == 0
    Process(tiny_file, tmp_path / "broken", settings=settings).end()
    assert outcome_of(tmp_path / "broken" / "run") == outcome_of(tmp_path / "whole" / "run")


@pytest.mark.slow
@pytest.mark.e2e
def test_rounds_take_their_own_time(tiny: Tiny, tmp_path: Path) -> None:
    """Ten clients, ten rounds, 0.3 s an update: in the round, 3 s a round."""
    changes = ("data.clients=10", "rounds=10", "data.options={examples=200}", "images=0")
    slow = (
        "attack.0.label=third_party:Takes",
        "attack.0.label_options.seconds=0.3",
        "server.attack_jobs=2",
    )
    seconds = {}
    for name, attacks in (("quick", ()), ("slow", slow)):
        run(tiny(*changes, *attacks), tmp_path / name)
        lines = read_lines(tmp_path / name / "rounds.jsonl")[1:]
        seconds[name] = sorted(line["seconds"] for line in lines)[5]
    assert len(read_lines(tmp_path / "slow" / "leakage.jsonl")) == 100
    assert seconds["slow"] < 1.0
