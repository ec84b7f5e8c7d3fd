"""Every random draw of a run comes from a generator that is named by where it is used."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def _words(seed: int, path: tuple[int | str, ...]) -> list[int]:
    return [seed, *(zlib.crc32(part.encode()) if isinstance(part, str) else part for part in path)]


def seed_for(seed: int, *path: int | str) -> int:
    """Derive a 63-bit seed from the run's seed and a path such as ("batch", round, client, step).

    Example:
        >>> seed_for(0, "batch", 1, 2) == seed_for(0, "batch", 1, 2) != seed_for(0, "batch", 2, 1)
        True
    """
    state = np.random.SeedSequence(_words(seed, path)).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def torch_generator(seed: int, *path: int | str) -> torch.Generator:
    """Return a CPU generator for a path."""
    return torch.Generator().manual_seed(seed_for(seed, *path))


def numpy_generator(seed: int, *path: int | str) -> np.random.Generator:
    """Return a NumPy generator for a path."""
    return np.random.default_rng(np.random.SeedSequence(_words(seed, path)))
