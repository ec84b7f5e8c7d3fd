"""The adapter around pyswarms: seeded, and it leaves the process as it was."""

from __future__ import annotations

import logging.config
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from attacks.numerics.particle_swarm import WORST, Array, particle_swarm

FRESH = """
import logging, os, torch
before = list(logging.root.handlers), logging.root.level
from attacks.numerics.particle_swarm import particle_swarm
generator = torch.Generator().manual_seed(0)
particle_swarm(abs, -1.0, 2.0, particles=5, iterations=3, generator=generator)
assert (list(logging.root.handlers), logging.root.level) == before
assert os.listdir() == [], os.listdir()
"""


def minimise(
    seed: int, *, particles: int = 50, low: float = 1.0, high: float = 6.0
) -> tuple[float, float]:
    return particle_swarm(
        lambda positions: (positions - 2.5) ** 2 + 1,
        low,
        high,
        particles=particles,
        iterations=40,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize(
    ("low", "high", "least"), [(1.0, 6.0, 2.5), (-6.0, -1.0, -1.0), (3.0, 9.0, 3.0)]
)
def test_finds_the_least_value_on_the_interval(low: float, high: float, least: float) -> None:
    position, value = minimise(0, low=low, high=high)
    assert position == pytest.approx(least, abs=1e-3)  # 40 rounds leave particles within 1e-5
    assert value == pytest.approx((least - 2.5) ** 2 + 1, abs=1e-3)
    assert low <= position <= high


def test_the_generator_decides_all_draws(moves_generators: None) -> None:
    first = minimise(0, particles=3)
    np.random.rand()
    assert minimise(0, particles=3) == first
    assert minimise(1, particles=3) != first


def test_an_objective_that_raises_leaves_the_process_as_it_was() -> None:
    """The global generators too, as after every test."""

    def objective(positions: Array) -> Array:
        raise ZeroDivisionError

    configure = logging.config.dictConfig
    with pytest.raises(ZeroDivisionError):
        particle_swarm(objective, 0, 1, particles=2, iterations=1, generator=torch.Generator())
    assert logging.config.dictConfig is configure


def test_writes_no_file_prints_nothing_and_leaves_logging_alone(tmp_path: Path) -> None:
    """In a process of its own, because pyswarms takes over logging when it is imported, too."""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", FRESH],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("worst", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_never_best(worst: float) -> None:
    def objective(positions: Array) -> Array:
        return np.where(positions < 0.5, worst, positions)

    generator = torch.Generator()
    position, value = particle_swarm(
        objective, 0, 1, particles=20, iterations=20, generator=generator
    )
    assert position == value == pytest.approx(0.5, abs=0.05)
    _, value = particle_swarm(
        lambda positions: np.full(len(positions), worst),
        0,
        1,
        particles=2,
        iterations=2,
        generator=generator,
    )
    assert value == WORST


def test_an_empty_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="low must be below high, found 1 and 1"):
        particle_swarm(abs, 1, 1, particles=1, iterations=1, generator=torch.Generator())
