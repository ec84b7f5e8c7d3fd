"""The benchmark of several local steps: its cells, its judge, its rows."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
import torch

from fl_sim.bench.image_steps import (
    BASE,
    CELLS,
    Cell,
    Outcome,
    _row,
    as_one_step,
    attack,
    rows,
    trained_client,
)
from fl_sim.bench.scores import Scores


def test_cells_change_one_factor_and_what_goes_with_it() -> None:
    assert CELLS[0] == BASE
    assert len({*CELLS}) == len(CELLS)
    together = [
        {"examples", "batch"},
        {"examples", "batch", "epochs"},
        {"batch", "epochs"},
        {"examples", "epochs", "lr"},
        {"epochs", "lr"},
        {"epochs", "lr", "told"},
        {"examples", "batch", "epochs", "widths"},
        {"examples", "widths"},
        {"source", "lr"},
        {"source", "examples"},
    ]
    for cell in CELLS[1:]:
        changed = {name for name in vars(BASE) if getattr(cell, name) != getattr(BASE, name)}
        assert len(changed) == 1 or changed in together


def test_every_epoch_takes_every_example_once() -> None:
    batches = Cell(examples=10, batch=4, epochs=3).batches(seed=0)
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [[*chain(*batches[at : at + 3])] for at in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_leak_tells_no_order() -> None:
    client = trained_client(replace(BASE, examples=8, momentum=0.9), 0)
    leak, images, labels = client.leak, client.images, client.labels
    assert (leak.schedule, leak.batch_size, leak.examples, leak.local_steps) == ("epochs", 4, 8, 2)
    assert (leak.optimizer_lr, leak.momentum) == (0.1, 0.9)
    assert (len(images), labels.shape) == (8, (8, 10))


def test_batches_are_told_where_a_cell_says_so() -> None:
    cell = replace(BASE, examples=8, told=True)
    assert trained_client(cell, 0).leak.schedule == tuple(map(tuple, cell.batches(0)))


def test_one_step_in_place_of_several_moves_as_far() -> None:
    leak = trained_client(replace(BASE, examples=4), 0).leak
    whole = as_one_step(leak)
    assert (whole.local_steps, whole.batch_size, whole.schedule) == (1, 4, None)
    for name, gradient in whole.gradients.items():
        assert leak.lr is not None
        assert whole.lr is not None
        torch.testing.assert_close(gradient * whole.lr, leak.gradients[name] * leak.lr)


@pytest.mark.parametrize(
    "cell",
    [Cell(examples=4, batch=4, epochs=5), Cell(examples=8)],
    ids=["full batches", "an epoch"],
)
def test_a_client_is_attacked_blind_and_scored(cell: Cell) -> None:
    outcome = attack(cell, 0)
    scores = outcome.scores
    assert (scores.found, scores.strict, scores.false) == (cell.examples, cell.examples, 0)
    assert scores.psnr.min() > 120  # the figure asked for
    assert outcome.naive < cell.examples


@pytest.mark.slow
def test_a_label_behind_a_saturated_softmax_is_not_claimed() -> None:
    """One batch took it, when weights at He's scale left nothing but its smoothing times scale."""
    scores = attack(replace(BASE, init="he"), 103).scores
    assert (scores.found, scores.false) == (15, 0)


def test_a_row_says_what_it_changes_and_counts_the_missing() -> None:
    lost = torch.tensor([-torch.inf, 130.0, 140.0], dtype=torch.float64)
    error = torch.tensor([torch.inf, 1e-6, 1e-7], dtype=torch.float64)
    scores = Scores(2, 2, 0, torch.zeros(3, 1, 2, 2), error, lost, lost)
    row = _row(
        replace(BASE, examples=3, widths=(64, 32)), [Outcome(scores, 1, 0.5, 1.5, "one less")]
    )
    assert row["cell"] == "examples 3, widths 64-32"
    assert (row["examples"], row["found"], row["naive > 20 dB"]) == (3, 2, 1)
    assert (row["psnr_median_db"], row["psnr_worst_db"]) == ("130.0", "-inf")
    assert (row["label_worst"], row["why not all"]) == ("inf", "one less")


def test_quick_rows_have_one_form() -> None:
    found = list(rows(quick=True, seed=0))
    assert [row["seeds"] for row in found] == [1, 1]
    assert len({tuple(row) for row in found}) == 1
