"""`fl-sim bench rounds`: the sweep behind the table, its rows and its figure."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fl_sim.bench import rounds
from fl_sim.bench.rounds import DEFENSES, EXACT, INITS, ROUNDS, TRAININGS, Cell, grid_of
from fl_sim.results.spread import Spread

CELLS = [Cell(*names) for names in itertools.product(INITS, TRAININGS, DEFENSES)]


def test_every_cell_is_a_scenario_that_is_attacked_at_the_chosen_rounds_only() -> None:
    runs = grid_of(CELLS, ROUNDS, seed=0, seeds=2).runs()
    assert [run.cell for run in runs] == [*range(len(CELLS))] * 2
    for cell, run in zip(CELLS, runs, strict=False):
        scenario = run.scenario
        assert scenario.rounds == max(ROUNDS)
        assert (scenario.model.name, scenario.model.init) == (cell.network, INITS[cell.network])
        assert [stage.name for stage in scenario.defense] == [
            d["name"] for d in DEFENSES[cell.defense]
        ]
        images = [attack.image for attack in scenario.attack]
        exact = EXACT.get((cell.network, cell.training))
        assert images == ([None] if exact is None else [None, exact[0]])
        for attack in scenario.attack:
            assert [at for at in range(1, 51) if attack.covers(at, 0)] == [*ROUNDS]


def test_quick_rows_hold_a_sweeps_numbers_and_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "INITS", {"mlp": "default"})
    monkeypatch.setattr(rounds, "TRAININGS", {"B = 1": {"batch_size": 1}})
    monkeypatch.setattr(rounds, "QUICK_DEFENSES", ("none", "dp-noise"))
    found = list(rounds.rows(quick=True, seed=0))
    assert [(row["defense"], row["round"]) for row in found] == [
        ("none", 1),
        ("none", 2),
        ("dp-noise", 1),
        ("dp-noise", 2),
    ]
    for row in found:
        assert row["attack"] == "soft-label + analytic"
        assert str(row["labels"]).startswith("1.00 [0.72, 1.00]")  # ten of ten, by Wilson
        assert row["false"] == 0
        # A single example's class is plain, and who sees no update is right one time in ten.
        assert float(str(row["mass off"])) < 0.2 < 0.8 < float(str(row["unseen"]))
        assert 0.05 < float(str(row["accuracy"])) < 0.5
    drawn = rounds.figure(found)
    assert [len(axes.lines) for axes in drawn.axes] == [2, 2, 3, 2]
    assert np.asarray(drawn.axes[0].lines[0].get_ydata()).tolist() == [1.0, 1.0]


def test_what_no_attack_applies_to_is_said_in_the_figure() -> None:
    row = {
        "network": "lenet",
        "batch": "epoch",
        "defense": "none",
        "round": 1,
        "attack": "label-mass",
    }
    blank = dict.fromkeys(("labels", "images ≥ 50 dB"), "–")
    known = {"mass off": "0.30 [0.20, 0.40]", "unseen": "0.32", "accuracy": "0.10"}
    panels = rounds.figure([row | blank | known]).axes
    assert ["no exact" in "".join(text.get_text() for text in axes.texts) for axes in panels] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("spread", "text", "numbers"),
    [
        (None, "–", None),
        (Spread(1, 0.5, 0.5, None, None), "0.50", (0.5, 0.5, 0.5)),
        (Spread(3, 0.5, 0.5, 0.25, 1.0), "0.50 [0.25, 1.00]", (0.5, 0.25, 1.0)),
    ],
    ids=["none", "one run", "several"],
)
def test_a_number_is_shown_and_read(
    spread: Spread | None, text: str, numbers: tuple[float, float, float] | None
) -> None:
    assert rounds._shown(spread) == text
    assert rounds._read(text) == numbers
