"""Dropout in train mode behind a ReLU: part of the mask, and no defense of labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from attacks import GradientLeak, Status
from attacks.images.analytic import AnalyticInversion
from attacks.labels.soft_label import SoftLabelRecovery

Build = Callable[..., Any]


def leak_with(dropout: dict[int, float], victim: Any) -> GradientLeak:
    """Return the leak of a network with dropout behind some of its modules, in train mode."""
    layers: list[nn.Module] = []
    for index, layer in enumerate(victim.model):
        layers += [layer, nn.Dropout(dropout[index])] if index in dropout else [layer]
    model = nn.Sequential(*layers).train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss = cross_entropy(model(victim.images), victim.labels.float())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
    shape = tuple(victim.images.shape[1:])
    return GradientLeak(model, list(gradients), len(victim.images), shape, mode="train")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("widths", "dropout"),
    [
        ((256,), {3: 0.5}),
        ((256, 256), {3: 0.5}),
        ((256, 256), {3: 0.5, 5: 0.3}),
        ((256, 256, 256), {3: 0.3, 7: 0.3}),
    ],
    ids=["one layer", "the first", "both", "first and third"],
)
def test_images_follow_through_dropout(
    widths: tuple[int, ...], dropout: dict[int, float], bias: bool, make_digits: Build
) -> None:
    victim = make_digits(8, widths=widths, bias=bias)
    leak = leak_with(dropout, victim)
    draws = torch.Generator().manual_seed(0)
    recovery = SoftLabelRecovery()(leak, generator=draws)
    assert recovery.status is Status.RECOVERED, recovery.reason
    found = AnalyticInversion()(leak, recovery, generator=draws)
    assert found.status is Status.RECOVERED, found.reason
    assert found.images is not None
    error = (found.images[:, None] - victim.images.double()).square().flatten(2).mean(2)
    assert (-10 * error.amin(0).log10()).min() > 100  # measured: 137


def test_images_of_dropped_pixels_are_not_claimed(make_digits: Build) -> None:
    victim = make_digits(8, widths=(256,))
    leak = leak_with({1: 0.2, 3: 0.5}, victim)
    draws = torch.Generator().manual_seed(0)
    recovery = SoftLabelRecovery()(leak, generator=draws)
    found = AnalyticInversion()(leak, recovery, generator=draws)
    assert found.status is Status.NOT_APPLICABLE
    assert "train mode" in (found.reason or "")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [{3: 0.5}, {1: 0.2, 3: 0.5}])
def test_dropout_is_part_of_the_mask(
    dropout: dict[int, float], bias: bool, make_digits: Build
) -> None:
    """Behind the last hidden layer, and before the network, where it is part of the input."""
    victim = make_digits(12, widths=(256,), bias=bias)
    leak = leak_with(dropout, victim)
    recovery = SoftLabelRecovery()(leak, generator=torch.Generator().manual_seed(0))
    assert recovery.status is Status.RECOVERED, recovery.reason
    assert recovery.labels is not None
    assert recovery.features is not None
    off = (recovery.labels[:, None] - victim.labels).abs().amax(2)
    assert off.amin(1).max() < 1e-5  # measured: 5e-7
    assert (recovery.features == 0).double().mean() > 0.6  # half of them, and half of the rest


def test_dropout_that_no_mask_shows_is_said_so(make_digits: Build) -> None:
    """Behind a leaky ReLU a unit has three values."""
    victim = make_digits(12, widths=(256,), activation=lambda: nn.LeakyReLU(0.1))
    leak = leak_with({3: 0.5}, victim)
    recovery = SoftLabelRecovery()(leak, generator=torch.Generator().manual_seed(0))
    assert recovery.status is Status.NOT_APPLICABLE
    assert "dropout behind layer" in (recovery.reason or "")
