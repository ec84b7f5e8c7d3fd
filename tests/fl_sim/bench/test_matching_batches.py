"""Batches whose features were recovered, attacked example by example."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fl_sim.bench.matching_batches import LENET, Batch, FirstDenseMatching, batch_of, one_by_one


@pytest.fixture(scope="module")
def batch() -> Batch:
    return batch_of(LENET, 0)


def test_each_examples_gradient_follows_from_what_was_recovered(batch: Batch) -> None:
    """The mean of what was given to examples is what the batch sent."""
    assert len(batch.alone) == len(batch.features) == len(batch.images) > 10
    assert set(batch.alone[0].gradients) == {"12.weight", "12.bias"}
    for name in batch.alone[0].gradients:
        mean = torch.stack([leak.gradients[name] for leak in batch.alone]).mean(dim=0)
        sent = batch.leak.gradients[name]
        # features and labels are right to about 1e-7, sums of 16 to a few times that
        assert float((mean - sent).norm() / sent.norm()) < 1e-4


def test_each_examples_feature_is_what_its_image_gives(batch: Batch) -> None:
    """Beside the truth: each row is the first dense layer's input on one of the images."""
    model = batch.leak.model
    assert isinstance(model, nn.Sequential) and batch.first == "8"
    with torch.no_grad():
        truth = model[:8](batch.images).double()
    rows = torch.cat([one.features for one in batch.features if one.features is not None])
    apart = torch.cdist(rows, truth) / truth.norm(dim=1)
    assert sorted(apart.argmin(dim=1).tolist()) == list(range(len(truth)))
    assert float(apart.amin(dim=1).max()) < 1e-3


def test_examples_are_searched_for_side_by_side(batch: Batch) -> None:
    attack = FirstDenseMatching(iterations=3, labels="given", layer=batch.first)
    found = one_by_one(attack, batch)
    assert found.images is not None
    assert found.images.shape == batch.images.shape
