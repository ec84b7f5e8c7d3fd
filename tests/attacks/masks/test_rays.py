"""Batches by the zeros of a hidden layer's inputs, where masks don't tell the examples apart."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from attacks import GradientLeak, LabelRecovery, NotApplicable, Status
from attacks.labels.soft_label import SoftLabelRecovery
from attacks.masks.equation import MaskEquation
from attacks.masks.examples import examples_of
from attacks.masks.rays import parts_by_rays
from attacks.masks.recover import hidden_layers
from attacks.victim.network import Network
from fl_sim.bench.victims import dataset, draw_batch, untrained
from fl_sim.testing import build_seeded, gradients_of, leak_of


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(
    size: int, model: nn.Module, seed: int = 0, kind: str = "label-smoothing", **options: Any
) -> tuple[GradientLeak, Tensor, Tensor]:
    images, labels = draw_batch(dataset("mnist-5k"), size, kind, seed=seed)
    return leak_of(model, images, labels, **{"sent_as": "float32"} | options), images, labels


def lenet(init: str = "default", seed: int = 0) -> nn.Module:
    return untrained("lenet5", dataset("mnist-5k"), bias=True, init=init, seed=seed)


def behind_convolution(
    activation: type[nn.Module], *, bias: tuple[bool, bool] = (True, True), width: int = 48
) -> nn.Module:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 5),
            nn.ReLU(),
            nn.MaxPool2d(3),
            nn.Flatten(),
            nn.Linear(512, width, bias=bias[0]),
            activation(),
            nn.Linear(width, 10, bias=bias[1]),
        )

    return build_seeded(build, seed=0)


def recover(leak: GradientLeak) -> LabelRecovery:
    return SoftLabelRecovery()(leak, generator=draws())


def errors_of(recovery: LabelRecovery, labels: Tensor) -> Tensor:
    """Return the L∞ errors of the rows that are called RECOVERED, each paired with an example."""
    rows = [row for row, s in enumerate(recovery.statuses) if s is Status.RECOVERED]
    if not rows:
        return torch.zeros(0)
    assert recovery.labels is not None
    off = (recovery.labels[rows][:, None] - labels).abs().amax(dim=2)
    return off[linear_sum_assignment(off.numpy())]


@pytest.mark.parametrize("init", ["default", "he"])
@pytest.mark.parametrize(("size", "sent_as"), [(32, "float32"), (40, "update")])
def test_more_examples_than_masks_of_120_units_tell_apart(
    size: int, sent_as: str, init: str
) -> None:
    leak, _, labels = batch(size, lenet(init), sent_as=sent_as)
    with pytest.raises(NotApplicable, match="their masks take 2 times as many"):
        MaskEquation.of(hidden_layers(leak, Network.of(leak)), 0, size)
    recovery = recover(leak)
    assert recovery.status is Status.RECOVERED, recovery.reason
    assert errors_of(recovery, labels).max() < 1e-3  # measured: 1e-4 of an update


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Softplus])
def test_no_mask_is_needed_behind_the_layer(activation: type[nn.Module]) -> None:
    leak, _, labels = batch(16, behind_convolution(activation))
    recovery = recover(leak)
    assert recovery.status is Status.RECOVERED, recovery.reason
    assert errors_of(recovery, labels).max() < 1e-3


def test_without_a_bias_a_label_gives_the_scale() -> None:
    leak, _, labels = batch(16, behind_convolution(nn.ReLU, bias=(False, True), width=64))
    recovery = recover(leak)
    assert recovery.status is Status.RECOVERED, recovery.reason
    assert errors_of(recovery, labels).max() < 1e-3


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_inputs_and_ways_back_are_exact(activation: type[nn.Module]) -> None:
    model = behind_convolution(activation)
    leak, images, _ = batch(12, model, sent_as="float64")
    network = Network.of(leak)
    chain = hidden_layers(leak, network)
    parts = parts_by_rays(chain, network, 12, draws())
    assert isinstance(model, nn.Sequential)
    truth = model[:4].double()(images.double()).detach().numpy()
    off = np.linalg.norm(parts.inputs[:, None] - truth, axis=2)
    assert off[linear_sum_assignment(off)].max() < 1e-6 * np.linalg.norm(truth, axis=1).max()
    found = examples_of(parts, chain, 12)
    assert found.is_whole
    assert found.returns.max() == 0


def test_inputs_of_both_signs_have_no_rays() -> None:
    model = build_seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 5), nn.Tanh(), nn.Flatten(), nn.Linear(4608, 32), nn.Linear(32, 10)
        ),
        seed=0,
    )
    leak, _, _ = batch(12, model)
    network = Network.of(leak)
    with pytest.raises(NotApplicable, match="layer '3''s inputs take both signs"):
        parts_by_rays(hidden_layers(leak, network), network, 12, draws())


def wrong_size(leak: GradientLeak, images: Tensor, labels: Tensor) -> GradientLeak:
    return dataclasses.replace(leak, batch_size=25)


def another_loss(leak: GradientLeak, images: Tensor, labels: Tensor) -> GradientLeak:
    gradients = gradients_of(leak.model, images, labels, mse_loss)
    return dataclasses.replace(leak, gradients=gradients)


def a_scaled_layer(leak: GradientLeak, images: Tensor, labels: Tensor) -> GradientLeak:
    last = list(leak.gradients)[-2]
    gradients = {n: 1.05 * g if n == last else g for n, g in leak.gradients.items()}
    return dataclasses.replace(leak, gradients=gradients)


def others_above(leak: GradientLeak, images: Tensor, labels: Tensor) -> GradientLeak:
    other = gradients_of(leak.model, images.flip(2), labels)
    last = list(leak.gradients)[-2:]
    gradients = {n: other[n] if n in last else g for n, g in leak.gradients.items()}
    return dataclasses.replace(leak, gradients=gradients)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("change", [wrong_size, another_loss, a_scaled_layer, others_above])
def test_claims_nothing_of_a_changed_gradient(change: Any, activation: type[nn.Module]) -> None:
    leak, images, labels = batch(24, behind_convolution(activation))
    assert recover(leak).status is Status.RECOVERED
    recovery = recover(change(leak, images, labels))
    assert recovery.reason
    assert Status.RECOVERED not in recovery.statuses
