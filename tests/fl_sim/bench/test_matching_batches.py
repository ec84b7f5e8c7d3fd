"""Batches whose features were recovered, attacked example by example."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.images.feature_matching import FeatureMatching
from fl_sim.bench.matching_batches import BASE, Batch, batch_of, one_by_one
from fl_sim.testing.leaks import gradients_of


@pytest.fixture(scope="module")
def batch() -> Batch:
    return batch_of(BASE, 0)


def test_each_examples_gradient_follows_from_what_was_recovered(batch: Batch) -> None:
    """The mean of what was given to examples is what the batch sent, layer by layer."""
    assert len(batch.alone) == len(batch.images) > 10
    names = set(batch.alone[0].gradients)
    assert names == {f"{layer}.weight" for layer in (8, 10, 12)} | {
        f"{layer}.bias" for layer in (8, 10, 12)
    }
    for name in names:
        mean = torch.stack([leak.gradients[name] for leak in batch.alone]).mean(dim=0)
        sent = batch.leak.gradients[name]
        # features and labels are right to about 1e-7, sums of 16 to a few times that
        assert float((mean - sent).norm() / sent.norm()) < 1e-4


def test_an_example_alone_has_its_own_gradient(batch: Batch) -> None:
    """Beside the truth: some example of the batch has just that gradient of the last layer."""
    model = batch.leak.model
    assert isinstance(model, nn.Sequential) and batch.recovery.labels is not None
    label = batch.recovery.labels[:1].float()
    given = batch.alone[0].gradients["12.weight"]
    apart = []
    for image in batch.images:
        own = gradients_of(model, image[None], label)["12.weight"]
        apart.append(float((own - given).norm() / given.norm()))
    assert min(apart) < 1e-3 < sorted(apart)[1]


def test_examples_are_searched_for_side_by_side(batch: Batch) -> None:
    attack = FeatureMatching(iterations=3, labels="given")
    found = one_by_one(attack, batch)
    assert found.images is not None
    assert found.images.shape == batch.images.shape
