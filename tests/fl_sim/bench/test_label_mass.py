"""The benchmark of label mass: its rows are complete, and its figure draws them."""

from __future__ import annotations

from typing import Any

import pytest

from fl_sim.bench import label_mass


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return list(label_mass.rows(quick=True, seed=0))


def test_each_setting_has_a_row_for_each_attack(found: list[dict[str, Any]]) -> None:
    settings = label_mass.settings(quick=True)
    assert len(found) == 7 * len(settings)
    assert len({tuple(row) for row in found}) == 1
    assert [row["attack"] for row in found[:7]].count("label-mass") == 1


def test_errors_are_shares_and_an_attack_that_does_not_apply_says_so(
    found: list[dict[str, Any]],
) -> None:
    for row in found:
        applies = row["attack"] != "gradinversion-labels" or row["batch"] * row["steps"] <= 10
        assert (row["TV"] != "–") == applies
        for column in ("TV", "IRec", "chance TV", "chance IRec"):
            assert row[column] == "–" or 0 <= row[column] <= 1


def test_label_mass_beats_chance_by_far_on_untrained_networks(found: list[dict[str, Any]]) -> None:
    for row in found:
        if row["attack"].startswith("label-mass"):
            assert row["TV"] < 0.5 * row["chance TV"]


def test_the_figure_has_a_panel_for_each_state_of_training(found: list[dict[str, Any]]) -> None:
    drawing = label_mass.figure(found)
    assert len(drawing.axes) == 2
    assert {"label-mass", "chance"} <= {line.get_label() for line in drawing.axes[0].lines}


def test_a_full_run_covers_batches_to_256_and_several_steps() -> None:
    settings = label_mass.settings(quick=False)
    assert {s.network for s in settings} == {"lenet", "resnet18"}
    assert {8, 256} <= {s.batch for s in settings}
    assert {s.steps > 1 for s in settings} == {True, False}
    assert {s.augmentation for s in settings} == {"hard", "label-smoothing", "mixup"}
