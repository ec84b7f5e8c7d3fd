"""Layers without a bias below layers with one: another bias, or a label, tells the scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from attacks import LabelRecovery, NotApplicable, Status
from attacks.dense.network import FullyConnected
from attacks.images.analytic import AnalyticInversion
from attacks.labels.soft_label import SoftLabelRecovery
from attacks.masks.scale import scales_by_bias, with_scale
from attacks.victim.network import Network

Build = Callable[..., Any]


def recover(leak: Any) -> LabelRecovery:
    return SoftLabelRecovery()(leak, generator=torch.Generator().manual_seed(0))


def errors_of(found: Tensor | None, truth: Tensor) -> Tensor:
    """Return L∞ errors of rows, each paired with an example."""
    assert found is not None
    off = (found[:, None] - truth.double()).abs().flatten(2).amax(dim=2)
    return off[linear_sum_assignment(off.numpy())]


def claimed_wrongly(recovery: LabelRecovery, labels: Tensor) -> bool:
    rows = [row for row, s in enumerate(recovery.statuses) if s is Status.RECOVERED]
    if not rows:
        return False
    assert recovery.labels is not None
    return bool(errors_of(recovery.labels[rows], labels).max() > 1e-2)  # what RECOVERED promises


@pytest.mark.parametrize("kind", ["label-smoothing", "mixup+label-smoothing"])
@pytest.mark.parametrize(
    ("widths", "bias"),
    [
        ((256,), (False, True)),
        ((256, 256), (False, False, True)),
        ((256, 64), (False, True, True)),
        ((256, 64), (False, True, False)),
    ],
)
def test_a_bias_above_gives_the_first_layer_its_scale(
    widths: tuple[int, ...], bias: tuple[bool, ...], kind: str, make_digits: Build
) -> None:
    victim = make_digits(12, widths=widths, bias=bias, kind=kind)
    recovery = recover(victim.leak)
    assert recovery.status is Status.RECOVERED, recovery.reason
    assert errors_of(recovery.labels, victim.labels).max() < 1e-4  # measured: 1e-5
    assert errors_of(recovery.features, victim.model[:-1](victim.images).detach()).max() < 1e-3
    draws = torch.Generator().manual_seed(0)
    found = AnalyticInversion()(victim.leak, recovery, generator=draws)
    assert found.status is Status.RECOVERED, found.reason
    assert errors_of(found.images, victim.images).max() < 1e-3  # measured: 1e-4


def chain_of(victim: Any) -> FullyConnected:
    network = Network.of(victim.leak)
    return FullyConnected.above(victim.leak, network, network.executed[0])


def test_a_hidden_bias_is_linear_in_inverse_scales(make_digits: Build) -> None:
    """Of the true inputs' directions, it gives their norms."""
    victim = make_digits(12, widths=(64, 64), bias=(False, True, True), sent_as="float64")
    inputs = victim.model[:2](victim.images.double()).detach().numpy()
    sizes = np.linalg.norm(inputs, axis=1, keepdims=True)
    scales, errors = scales_by_bias(chain_of(victim), inputs / sizes, 12, None)
    assert np.abs(scales / sizes - 1).max() < 1e-9
    assert errors.max() < 1e-6


def test_a_bias_of_other_examples_is_refused(make_digits: Build) -> None:
    victim = make_digits(12, widths=(64, 64), bias=(False, True, True), sent_as="float32")
    inputs = victim.model[:2](victim.images).detach().double().numpy()
    gradients = dict(victim.leak.gradients)
    name = next(name for name in gradients if name.endswith("4.bias"))
    gradients[name] = gradients[name].roll(1)
    changed = dataclasses.replace(
        victim, leak=dataclasses.replace(victim.leak, gradients=gradients)
    )
    with pytest.raises(NotApplicable, match="doesn't tell the scale of 12 examples"):
        scales_by_bias(chain_of(changed), inputs, 12, None)


def test_what_stands_between_must_be_homogeneous(make_digits: Build) -> None:
    victim = make_digits(8, widths=(64, 64), bias=(False, True, True), activation=nn.Tanh)
    with pytest.raises(NotApplicable, match="tanh, which isn't homogeneous"):
        with_scale(chain_of(victim))


def double_the_last_bias(victim: Any) -> Any:
    gradients = dict(victim.leak.gradients)
    name = list(gradients)[-1]
    return dataclasses.replace(victim.leak, gradients=gradients | {name: 2 * gradients[name]})


def one_more(victim: Any) -> Any:
    return dataclasses.replace(victim.leak, batch_size=13)


def a_factor(victim: Any) -> Any:
    gradients = {name: g / 2 for name, g in victim.leak.gradients.items()}
    return dataclasses.replace(victim.leak, gradients=gradients)


@pytest.mark.parametrize("bias", [(False, True), (False, True, True)])
@pytest.mark.parametrize("change", [double_the_last_bias, one_more, a_factor])
def test_claims_nothing_false_of_a_changed_gradient(
    bias: tuple[bool, ...], change: Callable[[Any], Any], make_digits: Build
) -> None:
    victim = make_digits(12, widths=(128, 64)[: len(bias) - 1], bias=bias, sent_as="float32")
    assert not claimed_wrongly(recover(change(victim)), victim.labels)
