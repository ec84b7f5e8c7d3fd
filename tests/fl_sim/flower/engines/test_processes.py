"""What a run started is stopped, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fl_sim.flower.engines.processes import marked_processes, stop, stopped_at_exit

# A process that ignores the kind way, and its child in a session of its own, where no signal to a
# group reaches.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
time.sleep(600)
"""
WAIT_SECONDS = 20.0  # a loaded machine takes a while to start Python


def wait_for(folder: Path, count: int) -> list[psutil.Process]:
    deadline = time.monotonic() + WAIT_SECONDS
    while len(found := marked_processes(folder)) != count:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def test_all_that_carries_the_mark_is_stopped_and_nothing_else(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    other.mkdir()
    with (
        stopped_at_exit(mine, os.environ) as start_mine,
        stopped_at_exit(other, os.environ) as start_other,
    ):
        started = start_mine([sys.executable, "-c", STUBBORN], log=mine / "log")
        start_other([sys.executable, "-c", STUBBORN], log=other / "log")
        wait_for(mine, 2)
        wait_for(other, 2)
        stop(mine)
        started.wait(WAIT_SECONDS)
        assert marked_processes(mine) == []
        assert len(marked_processes(other)) == 2


def test_an_error_stops_the_processes_and_removes_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(ZeroDivisionError), stopped_at_exit(folder, os.environ) as start:
        start([sys.executable, "-c", STUBBORN], log=folder / "log")
        wait_for(folder, 2)
        raise ZeroDivisionError
    assert marked_processes(folder) == []
    assert not folder.exists()


def test_a_kill_of_the_run_stops_its_processes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    script = f"""
import os, sys, time
from pathlib import Path
from fl_sim.flower.engines.processes import stopped_at_exit
folder = Path({str(folder)!r})
with stopped_at_exit(folder, os.environ) as start:
    start([sys.executable, "-c", {STUBBORN!r}], log=folder / "log")
    time.sleep(600)
"""
    run = subprocess.Popen([sys.executable, "-c", script])
    wait_for(folder, 2)
    run.kill()
    run.wait(WAIT_SECONDS)
    wait_for(folder, 0)
    deadline = time.monotonic() + WAIT_SECONDS
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
