"""DLG by the number of its starts: who takes another one, and the rows."""

from __future__ import annotations

from typing import Any

import pytest

from attacks import ExampleImage, Reconstruction, Status
from attacks.images.dlg import DLG
from fl_sim.bench.matching import Victim, victims_of
from fl_sim.bench.matching_restarts import MATCHED, best_by_start, rows


def test_a_client_whose_gradient_was_matched_takes_no_further_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the attack's own misfit: the first client at its second start, the second one never."""
    victims = victims_of("lenet", ("label-smoothing",), 2, 0)
    told = iter([[0.5, 0.2], [MATCHED / 2, 0.3], [0.1], [0.2]])
    seen: list[int] = []

    def together(self: Any, leaks: Any, labels: Any, generators: Any) -> list[Reconstruction]:
        seen.append(len(leaks))
        return [answer(victim, misfit) for victim, misfit in zip(victims, next(told), strict=False)]

    monkeypatch.setattr(DLG, "together", together)
    *_, found = best_by_start(DLG(restarts=1), victims, 4)
    assert seen == [2, 2, 1, 1]
    assert [one.examples[0].residual for one in found] == [MATCHED / 2, 0.1]
    assert [one.gradient_evaluations for one in found] == [14, 28]


def answer(victim: Victim, misfit: float) -> Reconstruction:
    image = victim.images[0].double()
    example = ExampleImage(Status.NOT_CONVERGED, "a stand-in", image, misfit)
    return Reconstruction.of([example], gradient_evaluations=7)


def test_a_row_for_each_number_of_starts() -> None:
    found = list(rows(quick=True, seed=0))
    assert [row["starts"] for row in found] == [1, 2]
    assert [row["evaluations"] for row in found] == [12, 24]
    assert all(row.keys() == found[0].keys() for row in found)
