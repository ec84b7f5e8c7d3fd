"""DLG by the number of its starts: the choice among them, and the rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attacks import ExampleImage, Reconstruction, Status
from attacks.images.dlg import DLG
from fl_sim.bench.matching import seeded
from fl_sim.bench.matching_restarts import rows


def test_of_all_starts_the_one_counts_that_matches_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first image's starts the second matches better, of the other's the first one."""
    misfits = [0.5, 0.1, 0.3, 0.4]

    def together(self: Any, leaks: Any, labels: Any, generators: Any) -> list[Reconstruction]:
        images = [torch.rand(3, 32, 32, generator=seeded(n)).double() for n in range(len(leaks))]
        return [
            Reconstruction.of(
                [ExampleImage(Status.NOT_CONVERGED, "a stand-in", image, misfit)],
                gradient_evaluations=7,
            )
            for image, misfit in zip(images, misfits, strict=True)
        ]

    monkeypatch.setattr(DLG, "together", together)
    found = list(rows(quick=True, seed=0))
    assert [row["starts"] for row in found] == [1, 2]
    assert [row["misfit"] for row in found] == ["0.3", "0.2"]  # medians of .5, .1 and of .3, .1
    assert [row["evaluations"] for row in found] == [7, 14]
    assert all(row.keys() == found[0].keys() for row in found)
