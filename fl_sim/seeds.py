"""Every random draw of a run comes from a generator that is named by where it is used."""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
from collections.abc import Iterator

import numpy as np
import torch

CPU = torch.device("cpu")


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


@contextlib.contextmanager
def seeded_layers(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Seed what layers draw, their weights or dropout, and leave PyTorch's global generators alone.

    A network may draw in eval mode, too; where none does, this takes a few microseconds.

    Args:
        seed: of the draws.
        device: of the network.
    """
    # Not torch.manual_seed, which would move the generators of all devices.
    generators = [torch.default_generator]
    if device.type == "cuda":
        current = torch.cuda.current_device()  # initialises CUDA, which makes the generators
        index = current if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    elif device.type == "mps":
        generators.append(torch.mps._get_default_mps_generator())
    before = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
