"""Stop every process that a run started, by its id, however the run ends.

Flower starts processes that outlive the command that started them, and Ray starts more. All inherit
a mark in their environment, and a working folder. A watcher, a process of its own, waits until its
standard input closes, which happens when the run ends and also when it is killed; then it stops
what carries the mark.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import psutil

MARK = "FL_SIM_RUN_PROCESSES"
GRACE_SECONDS = 3.0
LIMIT_SECONDS = 30.0


class Start(Protocol):
    """Starts a process that ends with the run."""

    def __call__(self, command: Sequence[str], *, log: Path) -> subprocess.Popen[bytes]:
        """Start a command in an empty working folder; what it prints goes to `log`."""


@contextlib.contextmanager
def stopped_at_exit(folder: Path, environment: Mapping[str, str]) -> Iterator[Start]:
    """Yield what starts processes; at the end stop them and theirs, and remove `folder`.

    Args:
        folder: the processes' own, whose path is the mark.
        environment: variables of the processes.

    Raises:
        OSError: the folder can't be written.
    """
    started: list[subprocess.Popen[bytes]] = []
    empty = folder / "cwd"
    empty.mkdir()

    def start(command: Sequence[str], *, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env={**environment, MARK: str(folder)},
                cwd=empty,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process

    command = [sys.executable, "-m", "fl_sim.flower.engines.processes", str(folder)]
    # A session of its own, so that Ctrl-C in a terminal doesn't end it before its work.
    watcher = subprocess.Popen(
        command, stdin=subprocess.PIPE, env=dict(environment), start_new_session=True
    )
    assert watcher.stdin is not None
    try:
        yield start
    finally:
        watcher.stdin.close()
        if watcher.wait() != 0:
            stop(folder)  # someone killed the watcher
        for process in started:
            process.wait()


def marked_processes(folder: Path) -> list[psutil.Process]:
    """Return the living processes that carry a folder's mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended, or is another user's
            if _is_marked(process, folder) and is_alive(process):
                found.append(process)
    return found


def _is_marked(process: psutil.Process, folder: Path) -> bool:
    environment = process.environ()
    if not environment:  # Ray's agents write their title over it
        return Path(process.cwd()).is_relative_to(folder)
    return bool(environment.get(MARK) == str(folder))


def stop(folder: Path) -> None:
    """End the marked processes: first kindly, after `GRACE_SECONDS` by force."""
    start = time.monotonic()
    asked: set[psutil.Process] = set()
    while alive := marked_processes(folder):
        passed = time.monotonic() - start
        if passed > LIMIT_SECONDS:
            break
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                if passed > GRACE_SECONDS:
                    process.kill()
                elif process not in asked:
                    process.terminate()
        asked.update(alive)
        psutil.wait_procs(alive, timeout=0.2)


def is_alive(process: psutil.Process) -> bool:
    """Say whether a process runs; one that only waits for its parent to notice its end doesn't."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


if __name__ == "__main__":
    run_folder = Path(sys.argv[1])
    sys.stdin.read()
    stop(run_folder)
    shutil.rmtree(run_folder, ignore_errors=True)
