"""Gradient matching beside other programs: the same steps, and what a turn takes."""

from __future__ import annotations

import pytest
import torch

from attacks.images.inverting_gradients import InvertingGradients
from fl_sim.bench import matching_speed
from fl_sim.bench.breaching_loop import breaching_search, has_breaching
from fl_sim.bench.matching import SMOOTH, Victim, known, psnrs, seeded, victims_of
from fl_sim.bench.memory import added_bytes
from fl_sim.bench.plain_loop import plain_search

LENGTH = 12


@pytest.fixture(scope="module")
def victim() -> Victim:
    return victims_of("lenet", ("label-smoothing",), 1, 0)[0]


@pytest.fixture(scope="module")
def start(victim: Victim) -> torch.Tensor:
    shape = (1, *victim.leak.input_shape)
    return torch.rand(*shape, generator=seeded(0), dtype=torch.float64).float()


def test_the_search_goes_where_the_plain_loop_goes(victim: Victim, start: torch.Tensor) -> None:
    """The same start, the same steps: images alike to what rounding does to signs."""
    plain = plain_search(victim.leak, victim.labels, LENGTH, SMOOTH, start)
    attack = InvertingGradients(iterations=LENGTH, total_variation=SMOOTH)
    ours = attack(victim.leak, known(victim.labels), generator=seeded(0))
    one, other = psnrs([plain, ours], [victim.images, victim.images])
    assert one == pytest.approx(other, abs=0.1)


@pytest.mark.skipif(not has_breaching(), reason="breaching isn't installed")
def test_and_where_breaching_goes(victim: Victim, start: torch.Tensor) -> None:
    plain = plain_search(victim.leak, victim.labels, LENGTH, SMOOTH, start)
    theirs, seconds = breaching_search(victim.leak, victim.labels, LENGTH, SMOOTH, start)
    one, other = psnrs([plain, theirs], [victim.images, victim.images])
    assert one == pytest.approx(other, abs=0.5)  # its best image is the one after the best loss
    assert seconds > 0


@pytest.mark.parametrize(
    ("way", "victims"),
    [(matching_speed.PLAIN, 1), (matching_speed.ONE, 1), (matching_speed.MANY, 2)],
)
def test_a_turn_counts_every_evaluation(way: str, victims: int, victim: Victim) -> None:
    evaluations, seconds = matching_speed.turn_of(way, [victim] * 2)()
    assert evaluations == victims * matching_speed.TURN
    assert seconds > 0


def test_the_ways_of_a_quick_run_need_no_compiler() -> None:
    assert not any(way.endswith("compiled") for way in matching_speed.ways(is_quick=True))


def test_added_memory_is_what_was_taken() -> None:
    """The most of three times: what the kernel reclaims of others' meanwhile lowers it."""
    found = [added_bytes(lambda: torch.ones(25 * 2**20)) for _ in range(3)]  # 100 MiB, given back
    added = [one for one in found if one is not None]
    if not added:
        pytest.skip("there is no /proc that says")
    assert max(added) == pytest.approx(100 * 2**20, rel=0.1)
