"""Processes that attack captures, one thread each; they share nothing with their parent but files.

A job and its outcome are lines of JSON on a pipe. A process that ends in the middle of a job,
killed for its memory or by a bug below Python, costs that job, and another takes its place; one
whose parent is gone ends at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

Job = Mapping[str, Any]
WORKER = "fl_sim.capture.worker"


class Crashed(RuntimeError):
    """A process ended in the middle of a job; the sentence says how."""


class Workers:
    """So many processes, started when there is work.

    Args:
        count: processes, at least 1.
    """

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="fl-sim-attack")
        self._local = threading.local()
        self._started: list[_Process] = []
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._futures: set[Future[None]] = set()
        self._is_closed = False

    @property
    def unfinished(self) -> int:
        """Jobs that aren't done."""
        self._forget_done()
        return len(self._futures)

    def submit(self, job: Job, on_crash: Callable[[str], None]) -> None:
        """Have a job done, soon.

        Args:
            job: for `fl_sim.capture.worker`.
            on_crash: called in another thread, with one sentence, where its process ends early.
        """
        self._futures.add(self._threads.submit(self._do, job, on_crash))

    def wait_for_one(self) -> None:
        """Wait until a job is done.

        Raises:
            OSError: a job's outcome couldn't be written, as on a full disk.
        """
        wait(self._futures, return_when=FIRST_COMPLETED)
        self._forget_done()

    def close(self) -> None:
        """End all processes, wherever they are."""
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in [*self._started]:
            process.end()
        self._threads.shutdown(wait=True)

    def _forget_done(self) -> None:
        done = {future for future in self._futures if future.done()}
        self._futures -= done
        for future in done:
            future.result()

    def _do(self, job: Job, on_crash: Callable[[str], None]) -> None:
        if self._is_closed:
            return
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = _Process()
            self._started.append(process)
            if self._is_closed:  # just now
                process.end()
                return
        try:
            outcome = process.do(job)
        except Crashed as error:
            process.end()
            self._started.remove(process)
            if not self._is_closed:
                on_crash(str(error))
            return
        self._idle.put(process)
        if "errno" in outcome:
            raise OSError(outcome["errno"], outcome["strerror"], outcome["filename"])


class _Process:
    """One process."""

    def __init__(self) -> None:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER],  # not what lies in the working folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # the terminal's interrupt is the parent's to handle
        )

    def do(self, job: Job) -> dict[str, Any]:
        """Do a job and return its outcome.

        Raises:
            Crashed: the process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            raise Crashed(f"the attack's process ended {how}")
        outcome: dict[str, Any] = json.loads(line)
        return outcome

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
