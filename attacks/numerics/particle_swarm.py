"""The one adapter around pyswarms: seeded, and without its side effects.

On import and whenever one of its objects is built, pyswarms takes over the process's logging: its
handlers replace those of the root logger, and one of them opens `report.log` in the working
directory. It draws from numpy's global generator.
"""

from __future__ import annotations

import contextlib
import logging.config
import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

_LOCK = threading.Lock()  # what pyswarms uses belongs to the whole process
INERTIA, PULL = 0.8, 0.5
"""Share of its velocity that a particle keeps, and how strongly its own and the swarm's best place
attract it; the defaults of the library that the paper's code uses (scikit-opt)."""
WORST = 1e100
"""Stands for NaN and infinity, with which pyswarms fails where no particle has anything better."""


def particle_swarm(
    objective: Callable[[Array], Array],
    low: float,
    high: float,
    *,
    particles: int,
    iterations: int,
    generator: torch.Generator,
) -> tuple[float, float]:
    """Minimise a function of one number on an interval by a particle swarm.

    J. Kennedy, R. Eberhart, "Particle swarm optimization", ICNN 1995, with one neighbourhood for
    all. Particles that leave the interval are put on its end. Global generators, logging and
    working directory are left as they were.

    Args:
        objective: maps positions (N,) to values (N,); one that is NaN or infinite is never best.
        low: the interval's lower end.
        high: its upper end, above `low`.
        particles: N, at least 1.
        iterations: how often all particles move, at least 1.
        generator: decides all draws.

    Returns:
        The best position visited, in [low, high], and its value.

    Raises:
        ValueError: the interval is empty.
    """
    if not low < high:
        raise ValueError(f"low must be below high, found {low} and {high}")
    seed = int(torch.randint(2**32, (), generator=generator))
    with _LOCK, _logging_left_alone(), _numpy_seeded(seed):
        from pyswarms.single import GlobalBestPSO

        swarm = GlobalBestPSO(
            n_particles=particles,
            dimensions=1,
            options={"c1": PULL, "c2": PULL, "w": INERTIA},
            bounds=(np.array([low]), np.array([high])),
            bh_strategy="nearest",
            velocity_clamp=(low - high, high - low),
        )
        value, position = swarm.optimize(
            lambda positions: np.nan_to_num(objective(positions[:, 0]), nan=WORST, posinf=WORST),
            iterations,
            verbose=False,
        )
    return float(position[0]), float(value)


@contextlib.contextmanager
def _logging_left_alone() -> Iterator[None]:
    configure = logging.config.dictConfig
    logging.config.dictConfig = lambda config: None
    try:
        yield
    finally:
        logging.config.dictConfig = configure


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
