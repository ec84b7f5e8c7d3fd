"""What holds in every test: one thread, and global random generators that stay where they are."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums don't depend on the number of cores, and tests don't compete for them."""
    torch.set_num_threads(1)


@pytest.fixture
def moves_generators() -> None:
    """Ask for this in a test that has a reason to draw from a global generator."""


@pytest.fixture(autouse=True)
def _global_generators_stay(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test after which torch, numpy or random would draw other numbers."""
    before = _generator_states()
    yield
    if "moves_generators" in request.fixturenames:
        return
    moved = [name for name, state in _generator_states().items() if state != before[name]]
    assert not moved, (
        f"the global generator of {' and '.join(moved)} was moved: pass a generator, or build "
        "networks under torch.random.fork_rng()"
    )


class _Here:
    """Stands in for processes: does one job at a time, when somebody waits, the last one first."""

    def __init__(self, count: int) -> None:
        self.jobs: list[Any] = []

    @property
    def unfinished(self) -> int:
        return len(self.jobs)

    def submit(self, job: Any, on_crash: Any) -> None:
        self.jobs.append(json.loads(json.dumps(job)))

    def wait_for_one(self) -> None:
        from fl_sim.capture.worker import attack

        attack(self.jobs.pop())

    def close(self) -> None:
        self.jobs.clear()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work off attacks on captures in this process."""
    from fl_sim.capture import backlog

    monkeypatch.setattr(backlog, "Workers", _Here)


def _generator_states() -> dict[str, object]:
    _, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (keys.tobytes(), position, has_gauss, gauss),
        "random": random.getstate(),
    }
