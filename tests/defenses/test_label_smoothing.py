"""Label smoothing: values, ranges and draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses.base import ClientStep
from defenses.label_smoothing import LabelSmoothing, smooth_labels


@pytest.mark.parametrize(
    ("label", "smoothing", "expected"),
    [
        ([1, 0, 0, 0], 0.0, [1, 0, 0, 0]),
        ([1, 0, 0, 0], 0.2, [0.85, 0.05, 0.05, 0.05]),
        ([1, 0, 0, 0], 1.0, [0.25, 0.25, 0.25, 0.25]),
        ([0.5, 0.5, 0, 0], 0.4, [0.4, 0.4, 0.1, 0.1]),
        ([0, 1], 0.5, [0.25, 0.75]),
    ],
)
def test_values(label: list[float], smoothing: float, expected: list[float]) -> None:
    smoothed = smooth_labels(torch.tensor([label], dtype=torch.float64), smoothing)
    # float64, two operations on numbers up to 1
    torch.testing.assert_close(
        smoothed, torch.tensor([expected], dtype=torch.float64), rtol=0, atol=1e-15
    )


def test_smoothing_may_differ_by_example() -> None:
    smoothed = smooth_labels(torch.eye(2, dtype=torch.float64), torch.tensor([[0.0], [1.0]]))
    assert smoothed.tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_is_the_smoothing_of_pytorch() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    classes = torch.arange(6) % 5
    ours = nn.functional.cross_entropy(logits, smooth_labels(torch.eye(5).double()[classes], 0.3))
    theirs = nn.functional.cross_entropy(logits, classes, label_smoothing=0.3)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)  # float64, five terms a row


def smoothings_of(defense: LabelSmoothing, rows: int, seed: int = 0) -> Tensor:
    """Read ε off smoothed hard labels of K = 4 classes: four times an off-class entry."""
    labels = torch.eye(4, dtype=torch.float64)[torch.zeros(rows, dtype=torch.long)]
    step = ClientStep(torch.zeros(rows, 1, 1, 1), labels)
    changed = defense.on_batch(step, torch.Generator().manual_seed(seed))
    assert changed.images is step.images
    return 4 * changed.labels[:, 1]


def test_a_fixed_smoothing_is_everyones() -> None:
    assert set(smoothings_of(LabelSmoothing(0.5), 100).tolist()) == {0.5}


def test_a_drawn_smoothing_is_uniform_in_its_interval() -> None:
    drawn = smoothings_of(LabelSmoothing([0.25, 0.75]), 10_000)
    assert drawn.min() >= 0.25
    assert drawn.max() <= 0.75
    # The mean of 10,000 has a standard deviation of 0.5 / √12 / 100 = 0.0014; five of them.
    assert abs(drawn.mean() - 0.5) < 0.0072
    assert len(drawn.unique()) > 9_900
    assert not torch.equal(drawn, smoothings_of(LabelSmoothing([0.25, 0.75]), 10_000, seed=1))


def test_a_list_is_kept_as_a_tuple() -> None:
    ends = [0.0, 0.5]
    defense = LabelSmoothing(ends)
    ends[1] = 9.0
    assert defense.smoothing == (0.0, 0.5)
    assert hash(defense) == hash(LabelSmoothing((0.0, 0.5)))


@pytest.mark.parametrize("smoothing", [0, 0.0, 1, 1.0, [0, 1], (0.5, 0.5)])
def test_accepts_both_ends(smoothing: Any) -> None:
    LabelSmoothing(smoothing)


@pytest.mark.parametrize(
    "smoothing",
    [
        -0.1,
        1.1,
        float("nan"),
        True,
        "0.1",
        None,
        [0.5, 0.1],
        [0.1],
        [0, 0.1, 0.2],
        [0, "1"],
        [],
        "ab",
    ],
)
def test_refuses_everything_else(smoothing: Any) -> None:
    with pytest.raises(ValueError, match=r"smoothing must be a number in \[0, 1\] or two .* found"):
        LabelSmoothing(smoothing)
