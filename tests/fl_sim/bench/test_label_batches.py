"""The benchmark of batches: its judge, its rows, its figure."""

from __future__ import annotations

from itertools import islice

import torch

from attacks import ExampleLabel, LabelRecovery, Status
from attacks.answers import without_claim
from fl_sim.bench.label_batches import Cell, _victim, figure, judge, rows


def answer(labels: torch.Tensor, features: torch.Tensor) -> LabelRecovery:
    """Claim both rows."""
    pairs = zip(labels, features, strict=True)
    return LabelRecovery.of(
        [ExampleLabel(Status.RECOVERED, label=label, feature=feature) for label, feature in pairs]
    )


def test_the_judge_pairs_rows_and_counts_false_accepts() -> None:
    labels = torch.eye(3, dtype=torch.float64)[:2]
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    right = judge(answer(labels.flip(0), features.flip(0)), labels, features)
    assert (right["found"], right["labels < 1e-3"], right["features < 1e-3"]) == (2, 2, 2)
    assert right["false"] == 0
    wrong = labels.clone()
    wrong[1] = torch.tensor([0.5, 0.5, 0.0])
    mixed = judge(answer(wrong, features), labels, features)
    assert (mixed["found"], mixed["labels < 1e-3"], mixed["false"]) == (2, 1, 1)
    first, second = answer(wrong, features).examples
    unclaimed = LabelRecovery.of([first, without_claim(second, "it is uncertain")])
    assert judge(unclaimed, labels, features)["false"] == 0


def test_no_image_is_twice_in_a_batch() -> None:
    _, images, labels = _victim(Cell("one digit", "n-D-K", 64, 20, 32), seed=0)
    assert labels.shape == (32, 20)
    assert len(torch.unique(images.flatten(1), dim=0)) == 32


def test_rows_have_one_form_and_a_figure() -> None:
    found = list(islice(rows(quick=True, seed=0), 8))
    assert {row["method"] for row in found} == {"soft-label", "HiGHS, random objectives"}
    assert [row["init"] for row in found] == ["default"] * 4 + ["he"] * 4
    assert len({tuple(row) for row in found}) == 1
    for row in (*found[:3], *found[4:7]):
        assert row["found"] == 16
        assert row["false"] == 0
    panels = figure(found).axes
    assert len(panels) == 3
    for panel in panels:
        names = [line.get_label() for line in panel.lines[:2]]
        assert names == ["MNIST, n-D-K, default", "MNIST, n-D-K, he"]
