"""Gradient matching by network: clients in both modes of batch norm, and what counts as learned."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fl_sim.bench.matching_networks import _learned, mode_leak, rows
from fl_sim.testing.leaks import build_seeded


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_client_in_train_mode_takes_the_batchs_statistics(mode: str) -> None:
    model = build_seeded(
        lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4)).eval()
    )
    before = copy.deepcopy(model.state_dict())
    images = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.eye(4)[:3]
    leak = mode_leak(model, images, labels, "train" if mode == "train" else "eval")
    state = model.state_dict()
    assert leak.mode == mode and not model.training
    assert all(torch.equal(state[name], before[name]) for name in before)
    # In train mode no constant shows that is added to all inputs of batch norm.
    shifted = mode_leak(model, images + 0.5, labels, leak.mode)
    same = torch.allclose(shifted.gradients["2.weight"], leak.gradients["2.weight"], atol=1e-4)
    assert same == (mode == "train")


@pytest.mark.parametrize(
    ("scores", "found", "learned"),
    [
        ([20.0, 21.0, 22.0], "0 of 3", "pixels"),
        ([9.0, 10.0, 30.0], "3 of 3", "identity"),
        ([9.0, 10.0, 30.0], "1 of 3", "nothing"),
        ([12.0], "0 of 1", "pixels"),
        ([9.0], "0 of 1", "nothing"),
    ],
)
def test_only_what_beats_the_mean_image_was_learned(
    scores: list[float], found: str, learned: str
) -> None:
    assert _learned(scores, [10.0] * len(scores), found) == learned


def test_a_row_says_what_it_was_measured_with() -> None:
    (row,) = rows(quick=True, seed=0)
    assert (row["network"], row["mode"], row["batch"], row["images"]) == ("lenet5", "eval", 1, 1)
    assert row["training"] == "none" and row["iterations"] == 10
