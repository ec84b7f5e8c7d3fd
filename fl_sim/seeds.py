"""Every random draw of a run comes from a generator that is named by where it is used."""

from __future__ import annotations

import hashlib
import json
import operator

import numpy as np
import torch


def _sequence(seed: int, path: tuple[int | str, ...]) -> np.random.SeedSequence:
    # Hashed, since SeedSequence pads with zeros: [1] and [1, 0] would give the same seed.
    parts = [part if isinstance(part, str) else operator.index(part) for part in path]
    digest = hashlib.sha256(json.dumps([operator.index(seed), *parts]).encode()).digest()
    return np.random.SeedSequence(int.from_bytes(digest, "big"))


def seed_for(seed: int, *path: int | str) -> int:
    """Derive a 63-bit seed from the run's seed and a path such as ("batch", round, client, step).

    Example:
        >>> seed_for(0, "batch", 1, 2) == seed_for(0, "batch", 1, 2) != seed_for(0, "batch", 2, 1)
        True
    """
    return int(_sequence(seed, path).generate_state(1, np.uint64)[0]) >> 1


def torch_generator(seed: int, *path: int | str) -> torch.Generator:
    """Return a CPU generator for a path."""
    return torch.Generator().manual_seed(seed_for(seed, *path))


def numpy_generator(seed: int, *path: int | str) -> np.random.Generator:
    """Return a NumPy generator for a path."""
    return np.random.default_rng(_sequence(seed, path))
