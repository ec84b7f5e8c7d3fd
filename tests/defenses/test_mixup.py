"""Mixup: values, pairs and shares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from defenses.base import ClientStep
from defenses.mixup import Mixup, mix_halves


@pytest.mark.parametrize(
    ("batch", "mixing", "expected"),
    [
        ([[0.0], [8.0]], [0.75], [[2.0]]),
        ([[1.0, 2.0], [3.0, 4.0]], [1.0], [[1.0, 2.0]]),
        ([[1.0, 2.0], [3.0, 4.0]], [0.0], [[3.0, 4.0]]),
        ([[0.0], [10.0], [4.0], [20.0]], [0.5, 0.25], [[2.0], [17.5]]),
    ],
    ids=["mixed", "first half", "second half", "two pairs"],
)
def test_values(batch: list[list[float]], mixing: list[float], expected: list[list[float]]) -> None:
    assert mix_halves(torch.tensor(batch), torch.tensor(mixing)).tolist() == expected


@pytest.mark.parametrize(("rows", "pairs"), [(3, 1), (1, 1), (2, 2), (6, 2)])
def test_refuses_a_batch_without_two_rows_a_pair(rows: int, pairs: int) -> None:
    with pytest.raises(ValueError, match=f"each of {pairs} pairs, found {rows}"):
        mix_halves(torch.zeros(rows, 2), torch.zeros(pairs))


def shares(alpha: float, pairs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mix images of 1 with images of 0, so that the pixels and labels show the shares (pairs,)."""
    halves = torch.cat([torch.ones(pairs), torch.zeros(pairs)]).double()
    step = ClientStep(halves.reshape(-1, 1, 1, 1), torch.stack([halves, 1 - halves], dim=1))
    mixed = Mixup(alpha).on_batch(step, torch.Generator().manual_seed(seed))
    return mixed.images.flatten(), mixed.labels[:, 0]


def test_images_and_labels_share_their_shares() -> None:
    pixels, labels = shares(1.0, 50)
    assert torch.equal(pixels, labels)
    assert len(pixels.unique()) == 50


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_are_beta(alpha: float) -> None:
    drawn, _ = shares(alpha, 20_000)
    variance = 1 / (4 * (2 * alpha + 1))
    # Five standard deviations of a mean and of a variance over 20,000 draws; the variance's is at
    # most √(2/n) of itself, as for a normal variable, since Beta(α, α) has lighter tails.
    assert abs(drawn.mean() - 0.5) < 5 * (variance / 20_000) ** 0.5
    assert abs(drawn.var() / variance - 1) < 5 * (2 / 20_000) ** 0.5


@pytest.mark.parametrize(("alpha", "distance"), [(1e-9, 0.5), (1e9, 0.0)])
def test_both_ends_of_alpha(alpha: float, distance: float) -> None:
    drawn, _ = shares(alpha, 1000)
    # Beta(1e-9, 1e-9) is within 1e-6 of 0 or 1 but for a chance of 3e-8; Beta(1e9, 1e9) has a
    # standard deviation of 1e-5.
    assert (abs(drawn - 0.5) - distance).abs().max() < 1e-4


def test_another_seed_gives_other_shares() -> None:
    assert torch.equal(shares(1.0, 5)[0], shares(1.0, 5)[0])
    assert not torch.equal(shares(1.0, 5)[0], shares(1.0, 5, seed=1)[0])


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf"), True, "1", None, [1.0]])
def test_refuses_an_impossible_alpha(alpha: Any) -> None:
    with pytest.raises(ValueError, match="alpha must be a finite number above 0, found"):
        Mixup(alpha)
