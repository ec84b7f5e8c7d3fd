"""Seeds: one generator for each path, and none shared."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fl_sim.seeds import numpy_generator, seed_for, seeded_layers, torch_generator


def test_a_path_gives_the_same_draws_again() -> None:
    first, again = (torch.rand(5, generator=torch_generator(3, "batch", 1, 2)) for _ in range(2))
    assert torch.equal(first, again)
    draws, redrawn = (numpy_generator(3, "data").random(5) for _ in range(2))
    assert np.array_equal(draws, redrawn)


def test_every_path_has_its_own_seed() -> None:
    numbers = (0, 1, 2, 2**32)
    paths: list[tuple[int | str, ...]] = [
        (),
        ("a",),
        ("b",),
        ("a", "b"),
        ("b", "a"),
        ("ab",),
        ("1",),
    ]
    paths += [path for length in (1, 2, 3) for path in itertools.product(numbers, repeat=length)]
    paths += [("a", *path) for path in itertools.product(numbers, repeat=2)]
    seeds = {seed_for(seed, *path) for seed in (0, 1, 2**62) for path in paths}
    assert len(seeds) == 3 * len(paths)


def test_trailing_zeros_and_carries_matter() -> None:
    # Both pairs collide under a bare SeedSequence, which pads with zeros and splits large numbers.
    assert seed_for(1) != seed_for(1, 0)
    assert seed_for(1 + (2 << 32)) != seed_for(1, 2)


def test_seeds_are_in_range_and_stay() -> None:
    assert all(0 <= seed_for(seed, "x") < 2**63 for seed in range(100))
    # Pinned: another value means that no earlier run can be repeated.
    assert seed_for(0, "batch", 1, 2, 3) == 8165489308789602645


def test_numpy_integers_name_the_same_path() -> None:
    assert seed_for(0, "batch", np.int64(1)) == seed_for(0, "batch", 1)


@pytest.mark.parametrize("part", [1.5, None])
def test_only_integers_and_strings_name_a_path(part: object) -> None:
    with pytest.raises(TypeError):
        seed_for(0, part)  # type: ignore[arg-type]


def test_generators_are_on_the_cpu() -> None:
    assert torch_generator(0).device.type == "cpu"


def test_layers_draw_by_the_seed_and_the_global_generator_stays() -> None:
    before, device = torch.get_rng_state(), torch.device("cpu")
    with seeded_layers(7, device):
        first = torch.rand(3)
    with pytest.raises(ZeroDivisionError), seeded_layers(7, device):
        assert torch.equal(torch.rand(3), first)
        raise ZeroDivisionError
    assert torch.equal(first, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_layers_draw_by_the_seed_on_a_gpu() -> None:
    device = torch.device("cuda")
    before = torch.cuda.get_rng_state()
    draws = []
    for _ in range(2):
        with seeded_layers(7, device):
            draws.append(torch.rand(3, device=device))
    assert torch.equal(*draws)
    assert torch.equal(torch.cuda.get_rng_state(), before)
