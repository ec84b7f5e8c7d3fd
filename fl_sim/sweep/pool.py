"""Processes that do runs side by side, one thread each."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fl_sim.errors import UserError
from fl_sim.sweep.folder import Ended, SweepFolder
from fl_sim.sweep.grid import PlannedRun, describe
from fl_sim.sweep.machine import FIRST_GUESS_BYTES, free_bytes, processors

THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""What tells PyTorch's and NumPy's libraries how many threads to start; a run computes on one."""


class Worker:
    """A process that is started when it is first asked, and anew after one that ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def start(self) -> subprocess.Popen[str] | None:
        """Start the process unless it is there; return it, or None of a worker that is closed."""
        with self._lock:
            if not self._is_closed:
                self._process = self._process or _start()
            return self._process

    def ask(self, scenario: str, folder: Path | None) -> dict[str, Any]:
        """Have a scenario run in a folder, or checked without one, and wait for the answer.

        Args:
            scenario: as JSON.
            folder: the run folder; None only checks whether the scenario can be run.

        Returns:
            What the worker says, as `fl_sim.sweep.worker`; "sentence" alone if its process ended.
        """
        process = self.start()
        if process is None:
            return {"sentence": "the sweep ended"}
        assert process.stdin is not None and process.stdout is not None
        request = {"scenario": json.loads(scenario), "folder": folder and str(folder.absolute())}
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        if answer := process.stdout.readline():
            found: dict[str, Any] = json.loads(answer)
            return found
        status = process.wait()
        how = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
        return {"sentence": f"its process was ended {how} before the last round"}

    def renew(self) -> None:
        """End the process, and with it what it does; the next one is another."""
        with self._lock:
            self._end()

    def close(self) -> None:
        """End the process, and start no other one."""
        with self._lock:
            self._is_closed = True
            self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()
        process.stdout.close()  # now, since another thread may have been reading


def _start() -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        **dict.fromkeys(THREADS, "1"),
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
    }
    # A session of its own, so that Ctrl-C in a terminal reaches the sweep alone, which ends it.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "fl_sim.sweep.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


class Pool:
    """Workers for as many runs at a time as asked for, or as the machine has room for.

    Args:
        jobs: runs at a time; None takes one for each processor that there is memory for, and begins
            a run beside others only while as much memory is free as the largest run of this sweep
            has taken so far.
        runs: how many there will be; more workers aren't needed.

    Use it as a context: at its end, however that comes, nothing runs any more.
    """

    def __init__(self, jobs: int | None, runs: int) -> None:
        self._is_bounded = jobs is None
        jobs = jobs or min(processors(), max(1, free_bytes() // FIRST_GUESS_BYTES))
        self._workers = [Worker() for _ in range(min(jobs, runs))]
        self._room = threading.Condition()
        self._running = 0
        self._peak_bytes = FIRST_GUESS_BYTES

    def __enter__(self) -> Pool:
        for worker in self._workers:  # which takes each of them seconds
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()

    def check(self, runs: Sequence[PlannedRun]) -> None:
        """Find what is wrong with any of the runs, before the first one begins.

        Raises:
            UserError: one of them can't be run.
        """
        for run in runs:
            found = self._workers[0].ask(run.scenario.to_json(), None)["sentence"]
            if found is not None:
                place = describe({**run.values, "seed": run.scenario.seed})
                raise UserError(f"{place}: {found}")

    def do(self, folder: SweepFolder, runs: Sequence[PlannedRun]) -> Iterator[Ended]:
        """Do runs, and yield how each ended as it does."""
        waiting: queue.SimpleQueue[PlannedRun] = queue.SimpleQueue()
        for run in runs:
            waiting.put(run)
        ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        for worker in self._workers:
            arguments = (worker, folder, waiting, ended)
            threading.Thread(target=self._work, args=arguments, daemon=True).start()
        for _ in runs:
            yield ended.get()

    def _work(
        self,
        worker: Worker,
        folder: SweepFolder,
        waiting: queue.SimpleQueue[PlannedRun],
        ended: queue.SimpleQueue[Ended],
    ) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                with self._a_place():
                    run = waiting.get_nowait()
                    answer = worker.ask(run.scenario.to_json(), folder.run_folder(run))
                result = Ended(**{"run": run.name, "is_finished": False, "seconds": 0.0, **answer})
                if not result.is_finished:
                    worker.renew()  # whatever it is in, the next run isn't
                self._peak_bytes = max(self._peak_bytes, result.peak_bytes or 0)
                ended.put(result)

    @contextlib.contextmanager
    def _a_place(self) -> Iterator[None]:
        """Wait until a run can begin."""
        with self._room:
            while self._is_bounded and self._running and free_bytes() < self._peak_bytes:
                self._room.wait(timeout=1.0)
            self._running += 1
        try:
            yield
        finally:
            with self._room:
                self._running -= 1
                self._room.notify()
