"""The benchmark of batches with more examples than classes: its cells, its judge, its rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fl_sim.bench.image_masks import BASE, CELLS, Cell, Outcome, _row, attack, gallery, rows
from fl_sim.bench.scores import Scores


def test_cells_change_one_factor_and_a_width_with_a_batch() -> None:
    assert CELLS[0] == BASE
    assert len({*CELLS}) == len(CELLS)
    for cell in CELLS[1:]:
        changed = {name for name in vars(BASE) if getattr(cell, name) != getattr(BASE, name)}
        pairs = (
            {"batch", "widths"},
            {"widths", "init"},
            {"batch", "widths", "init"},
            {"classes", "augmentation", "smoothing"},
            {"dropout", "bias"},
            {"is_trained", "augmentation"},
            {"is_trained", "bias"},
        )
        assert len(changed) == 1 or changed in pairs


@pytest.mark.parametrize("cell", [Cell(batch=8), Cell(batch=8, bias=False)])
def test_a_batch_is_attacked_blind_and_scored(cell: Cell) -> None:
    outcome = attack(cell, 0)
    assert (outcome.scores.found, outcome.scores.strict, outcome.scores.false) == (8, 8, 0)
    assert outcome.scores.psnr.min() > 115  # the figure asked for
    again = attack(cell, 0)
    assert torch.equal(again.scores.psnr, outcome.scores.psnr)


@pytest.mark.parametrize("cell", [Cell(batch=8, dropout=0.5), Cell(batch=8, is_trained=True)])
def test_dropout_and_training_leave_all(cell: Cell) -> None:
    outcome = attack(cell, 0)
    assert (outcome.scores.found, outcome.scores.strict, outcome.scores.false) == (8, 8, 0)
    assert outcome.scores.psnr.min() > 100  # measured: 139 and 120


def test_noise_as_large_as_the_gradient_leaves_nothing_claimed() -> None:
    outcome = attack(replace(BASE, batch=8, noise=3.0), 0)
    assert (outcome.scores.found, outcome.scores.false) == (0, 0)


def test_a_row_says_what_it_changes_and_counts_the_missing() -> None:
    lost = torch.tensor([-torch.inf, 130.0, 140.0], dtype=torch.float64)
    error = torch.tensor([torch.inf, 1e-6, 1e-7], dtype=torch.float64)
    scores = Scores(2, 2, 0, torch.zeros(3, 1, 2, 2), error, lost, lost)
    outcome = Outcome(scores, 1.5, "one is missing")
    row = _row(replace(BASE, batch=3, widths=(64, 32)), [outcome, outcome])
    assert row["cell"] == "batch 3, widths 64-32"
    assert (row["examples"], row["found"]) == (6, 4)
    assert (row["psnr_median_db"], row["psnr_worst_db"]) == ("130.0", "-inf")
    assert (row["label_worst"], row["why not all"]) == ("inf", "one is missing")
    assert (row["psnr_bar_db"], row["bar"], row["published"]) == ("130.0", "–", "–")
    hard = replace(BASE, augmentation="hard")
    assert (_row(hard, [outcome])["bar"], _row(hard, [outcome])["published"]) == (2, "SPEAR")
    assert _row(replace(hard, batch=32), [outcome])["published"] == "SPEAR++"


def test_quick_rows_have_one_form() -> None:
    found = list(rows(quick=True, seed=0))
    assert [row["cell"] for row in found] == ["base", "bias False", "batch 8"]
    assert len({tuple(row) for row in found}) == 1


def test_the_gallery_shows_every_digit() -> None:
    figure = gallery(0)
    assert len(figure.axes) == 2 * BASE.batch
    assert all(float(axes.get_title().split()[0]) > 115 for axes in figure.axes[: BASE.batch])
