"""Which example was in which step: directions that keep what is told, and the nearest schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attacks import NotApplicable
from attacks.training import Steps
from attacks.unrolled.schedule import Timetable

BATCHES = ((0, 1), (2, 3), (1, 2), (3, 0))
TOLD: dict[str, dict[str, Any]] = {
    "epochs": {"batch_size": 3, "local_steps": 4, "schedule": "epochs"},
    "drawn anew": {"batch_size": 2, "local_steps": 3, "schedule": "steps"},
    "told": {"local_steps": 4, "examples": 4, "schedule": BATCHES},
    "an epoch that is told": {"local_steps": 2, "examples": 4, "schedule": ((0, 2, 3), (1,))},
}


@pytest.mark.parametrize("told", TOLD.values(), ids=TOLD)
def test_directions_keep_the_sizes_and_how_often_an_example_is_taken(told: dict[str, Any]) -> None:
    timetable = Timetable.of(Steps(**told), 4)
    moved = timetable.ways() * timetable.sizes[:, None, None]
    torch.testing.assert_close(moved.sum(dim=1), torch.zeros_like(moved[:, 0]))
    if told["schedule"] != "steps":
        torch.testing.assert_close(moved.sum(dim=0), torch.zeros_like(moved[0]))


@pytest.mark.parametrize("told", TOLD.values(), ids=TOLD)
def test_directions_are_all_and_none_twice(told: dict[str, Any]) -> None:
    ways = Timetable.of(Steps(**told), 4).ways().flatten(0, 1)
    # (steps that are free) × (examples but one)
    free = {"epochs": 2, "drawn anew": 3, "told": 2, "an epoch that is told": 1}
    expected = next(free[name] for name, one in TOLD.items() if one is told) * 3
    assert ways.shape[1] == expected == int(torch.linalg.matrix_rank(ways))


def test_told_batches_are_found_up_to_the_order_of_the_examples() -> None:
    timetable = Timetable.of(Steps(4, 2, 4, BATCHES), 4)
    assert not timetable.is_told
    assert timetable.taken.equal(torch.full((4, 4), 0.5, dtype=torch.float64))
    order = [2, 0, 3, 1]
    assert timetable.batches is not None
    true = timetable.batches[:, order]
    blurred = 0.6 * true + 0.4 * timetable.taken
    found = timetable.nearest(blurred / timetable.sizes[:, None])
    assert found.is_told
    assert found.taken.equal(true)
    # Examples that moved apart the wrong way still get one of the told batches' numbers each.
    turned = timetable.nearest((1 - blurred) / timetable.sizes[:, None]).taken
    assert sorted(turned.T.tolist()) == sorted(true.T.tolist())


def test_full_batches_that_are_told_leave_nothing_to_find() -> None:
    timetable = Timetable.of(Steps(3, None, 4, (tuple(range(4)),) * 3), 4)
    assert timetable.is_told
    assert timetable.taken.equal(torch.ones(3, 4, dtype=torch.float64))


def test_one_epoch_that_is_told_is_one() -> None:
    assert Timetable.of(Steps(2, None, 4, ((0, 2, 3), (1,))), 4).is_one_epoch
    assert not Timetable.of(Steps(4, None, 4, BATCHES), 4).is_one_epoch


def test_batches_of_other_examples_than_the_update_shows_cost_a_sentence() -> None:
    with pytest.raises(NotApplicable, match="shows 3 different inputs of 4 examples"):
        Timetable.of(Steps(4, 2, 4, BATCHES), 3)
    with pytest.raises(NotApplicable, match=r"of 5 examples .* schedule must name all of the"):
        Timetable.of(Steps(4, 2, 4, BATCHES), 5)
