"""The worst case of a cell, and the weakest setting that holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fl_sim.results.comparison import ComparedRun, Comparison
from fl_sim.results.worst import holds, recommendations, worst

QUIET = {
    "labels_right": 0.0,
    "images_recognisable": 0.0,
    "images_identified": 0.0,
    "classes_right": 0.15,
    "class_guess": 0.1,
    "labels_tried": 1.0,
    "images_tried": 1.0,
    "mass_tv": 0.3,
    "mass_tv_chance": 0.4,
}
LOUD = QUIET | {"labels_right": 1.0, "classes_right": 1.0}
TITLES = {0: "soft-label (unaware)", 1: "soft-label (aware)"}


def run(cell: int, defense: str, attacks: dict[int, Any], accuracy: float = 0.9) -> ComparedRun:
    numbers = {"accuracy": accuracy, "epsilon": 2.0 if defense == "dp-noise" else None}
    numbers["rounds"] = 1.0
    told = {"is_finished": True, "titles": TITLES, "attacks": attacks, "numbers": numbers}
    return ComparedRun("run", Path("run"), cell, 0, {}, defense=defense, **told)


def compared(*runs: ComparedRun, cells: list[dict[str, Any]] | None = None) -> Comparison:
    numbered = [{"defense": one.defense} for one in runs]
    return Comparison("grid", ("defense",), cells or numbered, runs)


@pytest.mark.parametrize("attacker", ["unaware", "aware"])
def test_the_stronger_attack_counts_by_its_attacker(attacker: str) -> None:
    one = compared(run(0, "sign", {0: QUIET, 1: LOUD | {"mass_tv": 0.1}}))
    found = worst(one, 0, "labels_right", attacker=attacker)
    assert found is not None
    assert found.mean == (1.0 if attacker == "aware" else 0.0)
    both = worst(one, 0, "mass_tv")  # the lower, the worse
    assert both is not None and both.mean == 0.1
    assert worst(one, 0, "psnr_db") is None


@pytest.mark.parametrize(
    ("change", "held"),
    [
        ({}, True),
        ({"labels_right": 0.06}, False),
        ({"images_recognisable": 0.06}, False),
        ({"images_identified": 0.06}, False),
        ({"classes_right": 0.21}, False),
        ({"class_guess": 0.04}, False),
        ({"mass_tv": 0.0}, True),
        ({"labels_tried": 0.0}, True),
    ],
    ids=str,
)
def test_one_attack_beyond_the_bar_is_enough(change: dict[str, float], held: bool) -> None:
    assert holds(compared(run(0, "sign", {0: QUIET, 1: QUIET | change})), 0) is held


def test_where_no_attack_applies_nothing_holds() -> None:
    untried = QUIET | {"labels_tried": 0.5, "images_tried": 0.0}
    assert not holds(compared(run(0, "sign", {0: untried, 1: untried})), 0)
    assert not holds(compared(run(0, "sign", {0: {"mass_tv": 0.3}})), 0)


def test_of_the_settings_that_hold_the_most_accurate_is_recommended() -> None:
    cells = [
        run(0, "", {0: LOUD}, 0.95),
        run(1, "dp-noise", {0: LOUD}, 0.93),
        run(2, "dp-noise", {0: QUIET}, 0.80),
        run(3, "dp-noise", {0: QUIET}, 0.60),
        run(4, "sign", {0: LOUD}, 0.9),
    ]
    noise, sign = recommendations(compared(*cells))
    assert (noise.defense, noise.cell, noise.accuracy, noise.epsilon) == ("dp-noise", 2, 0.8, 2.0)
    assert noise.cost == pytest.approx(0.15)
    assert noise.counts == (0.3, 0.4)
    assert "15.0 points lower than without a defense; ε = 2" in noise.sentence
    assert (sign.defense, sign.setting) == ("sign", None)
    assert sign.sentence == "sign: no setting that was tried holds."


def test_a_defense_is_set_against_no_defense_in_the_same_surroundings() -> None:
    cells = [{"defense": d, "client.lr": lr} for d in ("", "sign") for lr in (0.1, 0.2)]
    runs = [
        run(0, "", {0: LOUD}, 0.9),
        run(1, "", {0: LOUD}, 0.8),
        run(2, "sign", {0: LOUD}, 0.85),
        run(3, "sign", {0: QUIET}, 0.7),
    ]
    found = Comparison("grid", ("defense", "client.lr"), cells, runs)
    (sign,) = recommendations(found)
    assert sign.cost == pytest.approx(0.1)


def test_nothing_is_recommended_where_defenses_dont_vary() -> None:
    cells = [{"client.lr": 0.1}]
    runs = [run(0, "sign", {0: QUIET})]
    assert recommendations(Comparison("grid", ("client.lr",), cells, runs)) == []
