"""A process that attacks captures: jobs in as lines of JSON, outcomes out; findings go to files."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fl_sim.capture.file import read_capture
from fl_sim.capture.pending import write_findings_file
from fl_sim.capture.plans import Scene
from fl_sim.capture.update import Auditor, taken_together
from fl_sim.errors import UserError
from fl_sim.leakage.findings import Finding
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
    """Attack a client's captures, and write the findings.

    Args:
        job: "round" and "client" say what is attacked, "captures" where that round is, and where
            attacks take rounds together, the earlier ones; "answer" is a path, "chosen" the numbers
            of the attacks, and "scene" a `Scene`.

    Raises:
        UserError: the scene can't be had.
        OSError: the answer can't be written.
    """
    scene = json.dumps(job["scene"])
    own = _auditor(scene, job["recipe"])
    together = [index for index in job["chosen"] if own.plans[index].combines_rounds]
    alone = [index for index in job["chosen"] if index not in together]
    place = {"server_round": job["round"], "client": job["client"]}
    findings: list[Finding] = []
    for chosen in [alone] * bool(alone) + [[index] for index in together]:
        try:
            findings += _attacked(job, scene, chosen, own)
        except UserError as error:
            findings += own.failed(str(error), **place, chosen=chosen)
    write_findings_file(Path(job["answer"]), findings)


def _attacked(
    job: Mapping[str, Any], scene: str, chosen: Sequence[int], own: Auditor
) -> list[Finding]:
    """Return the findings of attacks on one capture, or of one that takes several together.

    Raises:
        UserError: a capture can't be had.
    """
    server_round, client = job["round"], job["client"]
    plan, rounds = own.plans[chosen[0]], [server_round]
    if plan.combines_rounds:
        rounds = [r for r in map(int, job["captures"]) if plan.covers(r, client)]
    if str(server_round) not in job["captures"]:
        what = f"the capture of round {server_round}, client {client}"
        raise UserError(f"{what} can't be read: No such file or directory")
    captures = {r: read_capture(Path(job["captures"][str(r)])) for r in rounds}
    auditor = _auditor(scene, captures[max(rounds)].recipe.model_dump_json())
    about = {"server_round": server_round, "client": client, "chosen": chosen}
    leaks = {r: capture.update.leak(capture.build_model()) for r, capture in captures.items()}
    if not plan.combines_rounds:
        return auditor.audit(leaks[server_round], **about)
    leak, used = taken_together(leaks)
    return auditor.audit(leak, **about, rounds=used)


@lru_cache(maxsize=2)
def _auditor(scene: str, recipe: str) -> Auditor:
    return Scene.from_plain(json.loads(scene)).auditor(Recipe.model_validate_json(recipe))


if __name__ == "__main__":
    main()
