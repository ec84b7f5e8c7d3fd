"""A process that attacks captures: jobs in as lines of JSON, outcomes out; findings go to files."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from fl_sim.capture.file import read_capture
from fl_sim.capture.pending import write_findings_file
from fl_sim.capture.plans import Scene
from fl_sim.capture.update import Auditor
from fl_sim.errors import UserError
from fl_sim.recipe import Recipe
from fl_sim.threads import one_thread


def main() -> None:
    """Do jobs until the parent closes the pipe, or is gone."""
    outcomes = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what an attack prints is no outcome
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    with one_thread():
        while True:
            print(json.dumps(_outcome(json.loads(jobs.get()))), file=outcomes, flush=True)


def _listen(jobs: queue.SimpleQueue[str]) -> None:
    """Take jobs; when the pipe is closed end at once, even in the middle of one."""
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


def _outcome(job: dict[str, Any]) -> dict[str, Any]:
    try:
        attack(job)
    except OSError as error:  # of a full disk the parent has to know
        return {"errno": error.errno, "strerror": error.strerror, "filename": error.filename}
    return {}


def attack(job: dict[str, Any]) -> None:
    """Attack one capture, and write its findings.

    Args:
        job: "capture" and "answer" are paths, "round" and "client" what the capture is of,
            "chosen" the numbers of the attacks, and "scene" is a `Scene`.

    Raises:
        UserError: the scene can't be had.
        OSError: the answer can't be written.
    """
    about = {key: job[key] for key in ("chosen", "client")} | {"server_round": job["round"]}
    scene = json.dumps(job["scene"])
    try:
        capture = read_capture(Path(job["capture"]))
        auditor = _auditor(scene, capture.recipe.model_dump_json())
        findings = auditor.audit(capture.update.leak(capture.build_model()), **about)
    except UserError as error:
        findings = _auditor(scene, job["recipe"]).failed(str(error), **about)
    write_findings_file(Path(job["answer"]), findings)


@lru_cache(maxsize=2)
def _auditor(scene: str, recipe: str) -> Auditor:
    return Scene.from_plain(json.loads(scene)).auditor(Recipe.model_validate_json(recipe))


if __name__ == "__main__":
    main()
