"""The benchmark of where several local steps end: its lines, its measure, its figure."""

from __future__ import annotations

import copy
import dataclasses

import torch

from fl_sim.bench.image_steps import Cell, changed_masks, trained_client
from fl_sim.bench.image_steps_limits import LINES, figure, rows


def test_a_line_changes_one_number() -> None:
    for line in LINES:
        cells = [line.cell(value) for value in line.values]
        assert len({*cells}) == len(cells)
        assert line.base in cells
        assert all(
            len(cell.batches(0)) == cell.epochs * -(-cell.examples // cell.batch) for cell in cells
        )
    assert max(LINES[0].values) == 64
    assert max(LINES[2].values) == 100


def test_masks_that_change_are_counted_over_all_steps() -> None:
    client = trained_client(Cell(examples=2, batch=2, epochs=3, widths=(16,)), 0)
    still = dataclasses.replace(client, path=(client.leak.model,) * 3)
    assert changed_masks(still) == 0.0
    turned = copy.deepcopy(client.leak.model)
    with torch.no_grad():
        turned[2].weight.neg_()  # type: ignore[index, union-attr, operator]
    # There and back again: it counts that it was another one once.
    there = dataclasses.replace(client, path=(turned, client.leak.model))
    assert changed_masks(there) == 1.0


def test_quick_rows_and_their_figure() -> None:
    found = list(rows(quick=True, seed=0))
    assert [row["value"] for row in found] == [1, 4]
    assert all(row["false"] == 0 and 0 <= row["found"] <= 1 for row in found)
    assert found[1]["found"] == 1.0
    drawn = figure(found)
    assert drawn.axes[0].get_title() == "examples"
    assert len(drawn.axes[0].lines) == 2
