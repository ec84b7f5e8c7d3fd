"""The benchmark of batches through convolutions: its judge and its rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fl_sim.bench.image_batch_features import CELLS, LENET, VGG, Outcome, _row, attack, rows


def test_cells_are_different() -> None:
    assert len({*CELLS}) == len(CELLS)


def test_a_batch_is_attacked_blind_and_scored() -> None:
    outcome = attack(LENET, 0)
    assert (outcome.claims, outcome.false) == (12, 0)
    assert outcome.label_error.max() < 1e-4
    assert outcome.feature_error.max() < 1e-4  # relative
    assert len(outcome.mixed) == 2


def test_units_that_are_the_same_for_all_leave_nothing() -> None:
    """Under PyTorch's initialisation eight convolutions make nearly one feature of all images."""
    outcome = attack(VGG, 0)
    assert (outcome.claims, outcome.false) == (0, 0)
    assert max(outcome.mixed) < VGG.batch
    assert outcome.reason


def test_a_row_counts_the_missing() -> None:
    error = torch.tensor([1e-6, 1e-2, torch.inf], dtype=torch.float64)
    lost = torch.full((3,), -torch.inf, dtype=torch.float64)
    outcome = Outcome(1, 0, error, error, lost, (30, 20), 1.5, "one is missing")
    row = _row(replace(LENET, batch=3), [outcome])
    assert (row["examples"], row["found"], row["labels < 1e-3"], row["features"]) == (3, 1, 1, 1)
    assert (row["mixed"], row["why not all"]) == ("30+20", "one is missing")
    assert np.isclose(float(str(row["label_median"])), 1e-2)


def test_quick_rows_have_one_form() -> None:
    found = list(rows(quick=True, seed=0))
    assert [row["network"] for row in found] == ["lenet5", "lenet5"]
    assert len({tuple(row) for row in found}) == 1
