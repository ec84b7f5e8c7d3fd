"""One example whose label the last layer alone leaves open."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attacks import Status
from attacks.labels.soft_label import SoftLabelRecovery, solve_one
from attacks.masks.all_layers import with_all_layers
from attacks.one_example.bars import unknowns
from attacks.one_example.label_model import label_models
from attacks.one_example.problem import Problem
from attacks.victim.network import Network

Build = Callable[..., Any]
NARROW = {"widths": (256, 128, 64), "bias": False, "lr": 0.01}


@pytest.mark.parametrize("kind", ["label-smoothing", "mixup"])
def test_layers_below_measure_what_the_last_one_leaves_open(kind: str, make_digits: Build) -> None:
    """Weights after a step at 0.01: float32 leaves three digits of the last layer's gradient."""
    alone = together = 0
    for seed in range(8):
        victim = make_digits(1, seed=seed, kind=kind, **NARROW)
        network = Network.of(victim.leak)
        one = solve_one(
            Problem.of(victim.leak, network),
            models=label_models(victim.leak.told),
            unknown=unknowns(victim.leak),
            tolerance=1e-2,
            is_nonnegative=network.has_nonnegative_features,
        )
        alone += one.status is Status.RECOVERED
        recovery = SoftLabelRecovery()(victim.leak, generator=torch.Generator())
        if recovery.status is Status.RECOVERED:
            together += 1
            assert recovery.labels is not None
            assert (recovery.labels - victim.labels).abs().max() < 1e-2
    assert alone <= 6
    assert together >= 7


def test_layers_of_something_else_are_left_out(make_digits: Build) -> None:
    victim = make_digits(1, **NARROW)
    other = make_digits(1, **{**NARROW, "seed": 3}).leak.gradients
    name = "4.weight"
    gradients = dict(victim.leak.gradients)
    assert gradients[name].shape == other[name].shape
    gradients[name] = other[name]
    for changed in (gradients, {n: (1.1 if n == name else 1.0) * g for n, g in gradients.items()}):
        leak = dataclasses.replace(victim.leak, gradients=changed)
        network = Network.of(leak)
        assert with_all_layers(Problem.of(leak, network), leak, network) is None


def test_networks_of_another_kind_are_left_out(make_digits: Build) -> None:
    leak = make_digits(1, **{**NARROW, "bias": True}).leak
    network = Network.of(leak)
    assert with_all_layers(Problem.of(leak, network), leak, network) is None
