"""Attacks that no round waits for: they work off captures while the rounds go on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from fl_sim.capture.pending import Owed, PendingRounds, write_findings_file
from fl_sim.capture.plans import Scene
from fl_sim.capture.workers import Workers
from fl_sim.leakage.findings import Finding
from fl_sim.recipe import Recipe

logger = logging.getLogger(__name__)
Land = Callable[[list[Finding]], None]


def spare_cores() -> int:
    """Return how many processes can attack while a round has a core for itself; at least 1."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, cores - 1)


class Backlog:
    """The attacks that are owed, on the disk, and the processes that work them off.

    Args:
        captures: client -> round -> the capture that attacks work on, of all rounds so far.
        pending: what is owed, and what has been found.
        scene: the attacks.
        recipe: of the network.
        jobs: processes.
        most: updates that may be owed; where there are more, the next round waits.
        land: writes a whole round's findings to the log, in order.
        drop: called with a round whose captures nothing needs any more; None keeps them.
        on_progress: called with the number of updates that still wait.
    """

    def __init__(
        self,
        captures: Callable[[int], Mapping[int, Path]],
        pending: PendingRounds,
        scene: Scene,
        recipe: Recipe,
        *,
        jobs: int,
        most: int,
        land: Land,
        drop: Callable[[int], None] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self._captures = captures
        self._pending = pending
        self._scene = scene.to_plain()
        self._recipe = recipe.model_dump_json()
        self._auditor = scene.auditor(recipe)
        self._most = most
        self._land = land
        self._drop = drop
        self._on_progress = on_progress
        self._workers = Workers(jobs)
        self._has_waited = False

    def __enter__(self) -> Backlog:
        """Go on with what an earlier run left."""
        for server_round in self._pending.rounds():
            self._submit(server_round)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes; what they haven't done is still owed."""
        self._workers.close()

    def keep(self, server_round: int, findings: Sequence[Finding], owed: Owed) -> None:
        """Write down what a round found and owes, before it is committed."""
        self._pending.keep(server_round, findings, owed)

    def go_on(self, server_round: int) -> None:
        """Work off a round, now that it is committed; wait where too much is owed."""
        self._submit(server_round)
        while self._workers.unfinished > self._most:
            if not self._has_waited:
                logger.warning(
                    "more than %d updates wait for their attacks: rounds wait for them, too",
                    self._most,
                )
                self._has_waited = True
            self._workers.wait_for_one()
        self._land_what_is_whole()

    def settle(self) -> None:
        """Wait until nothing is owed any more.

        Raises:
            OSError: the disk is full.
        """
        self._land_what_is_whole()
        if left := self._workers.unfinished:
            logger.info("the rounds are done, and %d updates wait for their attacks", left)
        while left := self._workers.unfinished:
            if self._on_progress is not None:
                self._on_progress(left)
            self._workers.wait_for_one()
            self._land_what_is_whole()

    def _submit(self, server_round: int) -> None:
        for client, plans in self._pending.owed(server_round).items():
            takes_all = any(self._auditor.plans[index].combines_rounds for index in plans)
            captures = {
                str(r): str(path)
                for r, path in sorted(self._captures(client).items())
                if r == server_round or (takes_all and r < server_round)
            }
            answer = self._pending.answer(server_round, client)
            about = {"round": server_round, "client": client, "chosen": list(plans)}
            job = about | {
                "captures": captures,
                "answer": str(answer),
                "scene": self._scene,
                "recipe": self._recipe,
            }
            self._workers.submit(
                job, partial(self._fail, answer, server_round, client, list(plans))
            )

    def _fail(
        self, answer: Path, server_round: int, client: int, plans: list[int], reason: str
    ) -> None:
        findings = self._auditor.failed(
            reason, server_round=server_round, client=client, chosen=plans
        )
        write_findings_file(answer, findings)

    def _land_what_is_whole(self) -> None:
        """Bring rounds to the log, the earliest first, as far as nothing of them is owed."""
        for server_round in self._pending.rounds():
            if self._pending.owed(server_round):
                return
            self._land(self._pending.findings(server_round))
            if self._drop is not None:
                self._drop(server_round)
            self._pending.drop(server_round)
