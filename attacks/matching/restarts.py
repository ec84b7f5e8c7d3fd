"""A search from several starts for each client, and from others where no loss was finite."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from attacks.matching.evaluation import Problem, evaluation_of, on_device
from attacks.matching.optimisers import Optimiser
from attacks.matching.schedules import Schedule
from attacks.matching.search import Found, Stop, search
from attacks.types import NotApplicable

COPIES = 12
"""Copies of the gradient, and of what layers take, that one start holds at once."""


@dataclass(frozen=True, eq=False)
class Starts(Found):
    """What a search came to for one client.

    Args:
        redrawn: starts that were drawn anew, as their loss was never finite.
    """

    redrawn: int = 0


@dataclass(frozen=True)
class Restarts:
    """How a client is searched.

    Args:
        starts: of a client, at least 1.
        optimiser: moves them.
        schedule: how far.
        stop: until when.
        is_compiled: whether a C++ compiler makes machine code of the objective first.
        device: what computes; starts and answers are on the CPU.
    """

    starts: int
    optimiser: Optimiser
    schedule: Schedule
    stop: Stop
    is_compiled: bool
    device: torch.device

    def search(
        self, problems: Sequence[Problem], generators: Sequence[torch.Generator]
    ) -> list[Starts]:
        """Search for all clients as one, and once more where no loss was finite.

        Args:
            problems: alike but for what is given.
            generators: of each client's starts.

        Raises:
            NotApplicable: that takes more memory than is free.
        """
        self._require_memory(problems[0], self.starts * len(problems))
        found = self._run(problems, generators, self.starts)
        each = [
            Starts(rows, losses, found.evaluations // len(problems), found.ended)
            for rows, losses in zip(
                found.rows.reshape(len(problems), self.starts, -1),
                found.losses.reshape(len(problems), self.starts),
                strict=True,
            )
        ]
        return [
            one if bool(one.losses.isfinite().all()) else self._again(one, problem, generator)
            for one, problem, generator in zip(each, problems, generators, strict=True)
        ]

    def _again(self, found: Starts, problem: Problem, generator: torch.Generator) -> Starts:
        lost = ~found.losses.isfinite()
        count = int(lost.sum())
        again = self._run([problem], [generator], count)
        rows, losses = found.rows.clone(), found.losses.clone()
        rows[lost], losses[lost] = again.rows, again.losses
        evaluations = found.evaluations + again.evaluations
        return Starts(rows, losses, evaluations, found.ended, count)

    def _run(
        self, problems: Sequence[Problem], generators: Sequence[torch.Generator], starts: int
    ) -> Found:
        pairs = zip(problems, generators, strict=True)
        rows = torch.cat([problem.draw(starts, generator) for problem, generator in pairs])
        there = on_device(problems, self.device)
        calls = self.stop.iterations
        found = search(
            evaluation_of(there, starts, calls, is_compiled=self.is_compiled),
            rows.to(self.device),
            optimiser=self.optimiser,
            schedule=self.schedule,
            stop=self.stop,
            project=problems[0].unknowns.project,
        )
        return replace(found, rows=found.rows.cpu(), losses=found.losses.cpu())

    def _require_memory(self, problem: Problem, starts: int) -> None:
        """Raise unless a search fits into the memory that is free.

        Raises:
            NotApplicable: it doesn't.
        """
        itemsize = problem.victim.dtype.itemsize
        entries = problem.model.gradients * problem.victim.size + problem.unknowns.size
        needed, free = COPIES * starts * entries * itemsize, free_bytes(self.device)
        if needed > free:
            raise NotApplicable(
                f"{starts} starts on a gradient of {problem.victim.size} entries need about "
                f"{needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free"
            )


def free_bytes(device: torch.device) -> int:
    """Return how much of a device's memory is free; of a GPU that shares the machine's, of that."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
