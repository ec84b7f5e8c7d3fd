"""Batches under noise: error bars that hold, and one factor on the gradient for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from attacks import Status
from attacks.dense.network import FullyConnected
from attacks.labels.soft_label import SoftLabelRecovery
from attacks.masks.answer import MOST_APART, SAME_FACTOR, _agree
from attacks.masks.common_factor import Measure, common_factor
from attacks.masks.equation import MaskEquation
from attacks.masks.examples import Parts, examples_of
from attacks.masks.find import find_pairs
from attacks.victim.network import Network

Build = Callable[..., Any]


def under_noise(victim: Any, share: float, seed: int = 0) -> Any:
    """Add noise to each gradient, a share of its entries' own size: another one in each layer."""
    draws = torch.Generator().manual_seed(seed)
    gradients = {
        name: g.double()
        + share
        * g.double().square().mean().sqrt()
        * torch.randn(g.shape, generator=draws, dtype=torch.float64)
        for name, g in victim.leak.gradients.items()
    }
    return dataclasses.replace(victim.leak, gradients=gradients, lr=None, update_dtype=None)


def test_standard_deviations_of_the_labels_part_hold(make_digits: Build) -> None:
    """The last layer's noise is its own: here it is seven times that of the layer below."""
    victim = make_digits(sent_as="float32")
    leak = under_noise(victim, 1e-3)
    network = Network.of(leak)
    chain = FullyConnected.above(leak, network, network.executed[0])
    equation = MaskEquation.of(chain, 0, 16)
    pairs = find_pairs(equation, chain, 0, torch.Generator().manual_seed(0))
    found = examples_of(Parts.of_pairs(equation, pairs, chain, 16), chain, 16)
    truth = (victim.model(victim.images).softmax(1).double() - victim.labels).detach().numpy()
    off = np.abs(found.mixtures[:, None] - truth).max(axis=2)
    rows, columns = linear_sum_assignment(off)
    away = (found.mixtures[rows] - truth[columns]) / found.spread[rows]
    assert 0.5 < np.sqrt(np.mean(away**2)) < 1.5  # measured: 1.06; by the noise below 2.5
    assert found.is_whole


@pytest.mark.parametrize("kind", ["label-smoothing", "mixup"])
def test_a_batch_knows_its_factor_better_than_each_example(kind: str, make_digits: Build) -> None:
    victim = make_digits(sent_as="float32", kind=kind)
    leak = under_noise(victim, 2e-3)
    recovery = SoftLabelRecovery()(leak, generator=torch.Generator().manual_seed(0))
    claimed = [row for row, status in enumerate(recovery.statuses) if status is Status.RECOVERED]
    assert len(claimed) >= 14  # measured: 16; each by itself 3 and 12
    assert recovery.labels is not None
    off = (recovery.labels[claimed][:, None] - victim.labels.double()).abs().amax(2)
    assert off[linear_sum_assignment(off.numpy())].max() < 1e-2


def test_factors_agree_up_to_their_error_bars_and_never_where_an_input_is_shared() -> None:
    assert _agree(1 + SAME_FACTOR / 2, 1.0)
    assert not _agree(1 + 2 * SAME_FACTOR, 1.0)
    assert _agree(1.05, 1.0, bar=0.06)
    assert not _agree(1.05, 1.0, bar=0.04)
    for shared in (2.0, 1.5, 0.5):
        assert abs(np.log(shared)) > MOST_APART
        assert not _agree(shared, 1.0, bar=np.inf)


def test_a_common_factor_needs_measures_that_agree() -> None:
    alike = [Measure(0.01 + 1e-4 * x, 1e-4) for x in (-1.0, 0.0, 1.0, 0.0)]
    factor = common_factor([*alike, None])
    assert factor is not None
    assert factor.value == pytest.approx(np.exp(0.01), rel=1e-4)
    assert factor.bar == pytest.approx(4 * 1e-4 / 2)
    assert common_factor(alike[:2]) is None
    assert common_factor([*alike, Measure(0.7, 1e-4)]) is None
