"""`bias-ratio` and `idlg`: what the baselines find, and what they don't claim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from attacks import Status
from attacks.labels.bias_ratio import BiasRatio
from attacks.labels.idlg import IDLG
from fl_sim.testing import check_no_claim

Build = Callable[..., Any]


@pytest.mark.parametrize("kind", ["hard", "label-smoothing", "mixup", "mixup+label-smoothing"])
def test_bias_ratio_recovers_soft_labels(
    kind: str, make_model: Build, make_label: Build, make_victim: Build
) -> None:
    draws = np.random.default_rng(1)
    for seed in range(5):
        victim = make_victim(make_model(10, bias=True, seed=seed), make_label(10, kind, draws))
        recovery = BiasRatio()(victim.leak, generator=torch.Generator())
        assert recovery.status is Status.RECOVERED, recovery.reason
        assert (recovery.labels - victim.label).abs().max() < 1e-4  # measured: 1e-7 to 5e-6


def test_bias_ratio_claims_no_scaled_gradient(
    make_model: Build, make_label: Build, make_victim: Build
) -> None:
    draws = np.random.default_rng(2)
    for seed in range(10):
        label = make_label(10, "label-smoothing", draws)
        victim = make_victim(make_model(10, bias=True, seed=seed), label, factor=0.5)
        recovery = BiasRatio()(victim.leak, generator=torch.Generator())
        assert recovery.status is Status.NOT_IDENTIFIABLE
        check_no_claim(recovery)


def test_bias_ratio_needs_a_bias(make_model: Build, make_label: Build, make_victim: Build) -> None:
    victim = make_victim(make_model(10), make_label(10, "hard", np.random.default_rng(3)))
    recovery = BiasRatio()(victim.leak, generator=torch.Generator())
    assert recovery.status is Status.NOT_APPLICABLE
    assert recovery.reason == "the last layer has no bias"


@pytest.mark.parametrize("kind", ["hard", "label-smoothing"])
def test_idlg_finds_the_class_but_claims_no_label(
    kind: str, make_model: Build, make_label: Build, make_victim: Build
) -> None:
    draws = np.random.default_rng(4)
    for seed in range(10):
        label = make_label(10, kind, draws)
        victim = make_victim(make_model(10, seed=seed), label, seed=seed)
        recovery = IDLG()(victim.leak, generator=torch.Generator())
        assert recovery.status is Status.NOT_IDENTIFIABLE
        check_no_claim(recovery)
        assert recovery.labels is not None
        assert recovery.labels.sum() == recovery.labels.max() == 1
        assert recovery.labels.argmax() == label.argmax()


def test_idlg_sees_that_a_mixed_label_is_not_hard(
    make_model: Build, make_label: Build, make_victim: Build
) -> None:
    """An even mixture has two classes with p < y, and these don't oppose each other."""
    label = torch.zeros(1, 10, dtype=torch.float64)
    label[0, 2] = label[0, 7] = 0.5
    recovery = IDLG()(make_victim(make_model(10), label).leak, generator=torch.Generator())
    assert recovery.status is Status.NOT_IDENTIFIABLE
    assert recovery.labels is None
    assert "isn't hard" in str(recovery.reason)
