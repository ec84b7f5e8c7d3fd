"""A process that does a sweep's runs, one after the other, as the sweep asks for them.

It reads a line of JSON for each thing to do from standard input, and answers with a line on
standard output. It ends with its standard input: whatever ends the sweep ends its runs, and what
they have committed is on the disk.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import resource
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fl_sim.errors import EngineError, NothingAccepted, UserError
from fl_sim.flower.run import run  # takes seconds, while the sweep makes up what to ask
from fl_sim.flower.server import Server
from fl_sim.run_folder import RunFolder
from fl_sim.scenario import Scenario

Message = dict[str, Any]


def main() -> None:
    """Do what is asked for until there is nobody left to ask."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1) as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # for what a model prints
        asked: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(asked,), daemon=True).start()
        while True:
            request = json.loads(asked.get())
            answer = _check(request) if request["folder"] is None else _run(request)
            answers.write(json.dumps(answer) + "\n")


def _listen(asked: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        asked.put(line)
    os._exit(0)  # in the midst of a run, too


def _check(request: Mapping[str, Any]) -> Message:
    """Build what a run is made of, without a file: raises now what would be wrong with it later."""
    try:
        Server(Scenario.parse(request["scenario"]), RunFolder(Path()))
    except UserError as error:
        return {"sentence": str(error)}
    return {"sentence": None}


def _run(request: Mapping[str, Any]) -> Message:
    """Run a scenario in its folder, or go on there; what it prints goes beside the folder."""
    folder = Path(request["folder"])
    is_finished, sentence, start = False, None, time.perf_counter()
    with _printing_to(folder.with_name(f"{folder.name}.log")):
        try:
            run(_alone(Scenario.parse(request["scenario"])), folder, resume=True)
            is_finished = True
        except NothingAccepted as error:
            is_finished, sentence = True, str(error)
        except (UserError, EngineError) as error:
            sentence = str(error)
        except Exception as error:
            traceback.print_exc()
            sentence = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return {
        "sentence": sentence,
        "is_finished": is_finished,
        "seconds": time.perf_counter() - start,
        "peak_bytes": _peak_bytes(),
    }


def _alone(scenario: Scenario) -> Scenario:
    """Return a scenario whose attacks after the round take no more than one process beside it."""
    if scenario.server.attack_jobs is not None:
        return scenario
    return scenario.with_changes({"server.attack_jobs": 1})


@contextlib.contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Send what this process prints to a file, which goes again if nothing was printed."""
    before = [os.dup(number) for number in (1, 2)]
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, old in zip((1, 2), before, strict=True):
                os.dup2(old, number)
                os.close(old)
    if not log.stat().st_size:
        log.unlink()


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # there in bytes


if __name__ == "__main__":
    main()
