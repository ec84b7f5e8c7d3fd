"""Pairs that were mixed twice come apart, whoever stands where, and wrong pairs don't."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attacks.unmix import separate
from defenses import ClientStep
from defenses.vicinal import Kind, Vicinal


def mixed(
    classes: list[int], kind: Kind, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, torch.Tensor]:
    """Return originals, and their mixes in a shuffled order: images, labels and the order."""
    draws = torch.Generator().manual_seed(seed)
    originals = torch.rand(len(classes), 1, 6, 6, generator=draws, dtype=torch.float64)
    labels = torch.eye(10, dtype=torch.float64)[classes]
    step = Vicinal(kind).on_batch(ClientStep(originals, labels), draws)
    order = torch.randperm(len(classes), generator=draws)
    return originals, step.images[order], step.labels[order], order


@pytest.mark.parametrize("kind", ["double-mix", "reverse"])
@pytest.mark.parametrize(
    "classes", [[0, 1, 2, 3], [5, 2, 2, 5, 2, 5, 9, 0]], ids=["classes apart", "the same classes"]
)
def test_every_original_comes_back(kind: Kind, classes: list[int]) -> None:
    originals, images, labels, order = mixed(classes, kind)
    found = separate(images, labels)
    assert len(found) == len(classes) // 2
    for pair in found:
        places = sorted(int(order[row]) for row in pair.rows)
        first = places[0] // 2 * 2
        assert places == [first, first + 1]
        by_class = sorted((classes[place], place) for place in places)
        assert pair.classes == tuple(k for k, _ in by_class)
        expected = originals[[place for _, place in by_class]]
        # float64, one 2×2 system; its condition is at most a few thousand
        torch.testing.assert_close(pair.images, expected, rtol=0, atol=1e-9)


def test_smoothing_is_taken_off() -> None:
    originals, images, labels, _ = mixed([3, 4], "double-mix")
    (pair,) = separate(images, 0.7 * labels + 0.03)
    torch.testing.assert_close(pair.images, originals, rtol=0, atol=1e-9)


def test_one_class_and_missing_rows_are_left_out() -> None:
    _, images, labels, _ = mixed([3, 3, 1, 2], "double-mix")
    missing = labels.clone()
    missing[(labels[:, 1] > 0).nonzero()[0]] = torch.nan
    assert [pair.classes for pair in separate(images, labels)] == [(1, 2)]
    assert separate(images, missing) == []


def test_mixes_of_different_pairs_dont_fit() -> None:
    """Two single mixes of four images of two classes: as after plain mixup."""
    draws = torch.Generator().manual_seed(1)
    originals = torch.rand(4, 1, 6, 6, generator=draws, dtype=torch.float64)
    shares = torch.tensor([0.8, 0.3], dtype=torch.float64).reshape(2, 1, 1, 1)
    images = shares * originals[:2] + (1 - shares) * originals[2:]
    labels = torch.zeros(2, 10, dtype=torch.float64)
    labels[:, 0], labels[:, 1] = shares.flatten(), 1 - shares.flatten()
    assert separate(images, labels) == []
