"""Gradient matching at equal iterations: DLG's starts, and the rows."""

from __future__ import annotations

from typing import Any

import pytest

from attacks import ExampleImage, Reconstruction, Status
from attacks.images.dlg import DLG
from fl_sim.bench.matching import Victim, victims_of
from fl_sim.bench.matching_quality import MISFIT, Budget, dlg_in_turn, rows


def test_a_client_whose_gradient_was_matched_takes_no_further_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the attack's own misfit: the first client at its second start, the second one never."""
    victims = victims_of("lenet", ("label-smoothing",), 2, 0)
    told = iter([[0.5, 0.2], [MISFIT / 2, 0.3], [0.1]])
    seen: list[int] = []

    def together(self: Any, leaks: Any, labels: Any, generators: Any) -> list[Reconstruction]:
        seen.append(len(leaks))
        return [answer(victim, misfit) for victim, misfit in zip(victims, next(told), strict=False)]

    monkeypatch.setattr(DLG, "together", together)
    found = dlg_in_turn(victims, Budget(ig=1, dlg=7, starts=3))
    assert seen == [2, 2, 1]
    assert [one.examples[0].residual for one in found] == [MISFIT / 2, 0.1]
    assert [one.gradient_evaluations for one in found] == [14, 21]


def answer(victim: Victim, misfit: float) -> Reconstruction:
    image = victim.images[0].double()
    example = ExampleImage(Status.NOT_CONVERGED, "a stand-in", image, misfit)
    return Reconstruction.of([example], gradient_evaluations=7)


def test_the_exact_attack_stands_beside_searches_of_the_same_images() -> None:
    found = list(rows(quick=True, seed=0))
    assert [row["way"] for row in found if row["way"] != "IG, breaching"] == [
        *("IG, plain loop", "IG", "DLG, up to 2 starts", "r-gap")
    ]
    assert {row["images"] for row in found} == {1}
    assert all(row.keys() == found[0].keys() for row in found)
    assert found[-1]["called recovered"] == 1  # as in the table of convolutions
