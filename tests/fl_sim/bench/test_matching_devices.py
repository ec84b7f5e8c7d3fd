"""Gradient matching by device: what a turn of the plain loop and of the search counts."""

from __future__ import annotations

import torch

from fl_sim.bench.matching import victims_of
from fl_sim.bench.matching_devices import plain_turn, rows, search_turn

CPU = torch.device("cpu")


def test_a_turn_counts_every_victims_evaluations() -> None:
    victims = victims_of("lenet", ("label-smoothing",), 2, 0)
    assert plain_turn(victims[0], 3, CPU)() == 3
    assert search_turn(victims, 3, CPU)() == 6
    assert victims[0].leak.model.training is False


def test_the_plain_loop_is_what_others_are_compared_with() -> None:
    found = list(rows(quick=True, seed=0))
    assert [row["way"] for row in found] == ["plain loop", "one victim", "16 victims at once"]
    assert found[0]["times the plain loop"] == "1.00"
    assert {row["device"] for row in found} == {"cpu"}
