"""Every verdict on one example, each on a small problem that is made for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attacks import LabelRecovery, Status
from attacks.labels.soft_label import SoftLabelRecovery

Array = NDArray[np.float64]
Build = Callable[..., Any]
SMOOTHED = 0.7 * np.eye(10)[3] + 0.03


def recover(head: Any, tolerance: float = 1e-2) -> LabelRecovery:
    return SoftLabelRecovery(tolerance)(head.leak, generator=torch.Generator())


def assert_not_identifiable(answer: LabelRecovery, reason: str) -> None:
    """Nothing is claimed, in whichever field, and the reason is the one expected."""
    assert answer.status is Status.NOT_IDENTIFIABLE
    assert answer.statuses == (Status.NOT_IDENTIFIABLE,)
    assert answer.reason is not None
    assert reason in answer.reason
    assert answer.examples[0].reason == answer.reason


def error_of(answer: LabelRecovery, label: Array) -> float:
    assert answer.labels is not None
    return float(np.abs(answer.labels[0].numpy() - label).max())


def two_signs(t: float, c: float = 0.5, classes: int = 8) -> dict[str, Any]:
    """Return a label and a layer whose gradient has a root at λ and another at −λ.

    The logits are (t, −t, c, −c, c, −c, …), `Z = 2 cosh t + (K − 2) cosh c`. Both roots need
    `p(λ) + p(−λ)`, which is 2 cosh t/Z twice and else 2 cosh c/Z, to be the sum of their labels: of
    the classes 0 and 1, smoothed by ε = K cosh c/Z.
    """
    epsilon = classes * np.cosh(c) / (2 * np.cosh(t) + (classes - 2) * np.cosh(c))
    label = (1 - epsilon) * np.eye(classes)[0] + epsilon / classes
    draws = np.random.default_rng(0)
    feature = draws.normal(size=30)
    weight = draws.normal(size=(classes, 30)) / 8
    logits = np.resize([c, -c], classes)
    logits[:2] = t, -t
    weight += np.outer(logits - weight @ feature, feature) / (feature @ feature)
    return {"label": label, "feature": feature, "weight": weight, "is_signed": True}


@pytest.mark.parametrize("label", [np.eye(10)[3], SMOOTHED])
@pytest.mark.parametrize("settings", [{}, {"noise": 1e-4}, {"dtype": torch.float32}])
@pytest.mark.parametrize("bias", [False, True])
def test_recovered(label: Array, settings: dict[str, Any], bias: bool, make_head: Build) -> None:
    answer = recover(make_head(label, bias=bias, **settings))
    assert answer.status is Status.RECOVERED, answer.reason
    assert answer.statuses == (Status.RECOVERED,)
    assert answer.reason is None
    assert answer.examples[0].reason is None
    assert error_of(answer, label) < 1e-2
    assert answer.examples[0].feature_bar is not None


def test_no_label_fits_a_changed_gradient(make_head: Build) -> None:
    label = np.arange(10) / 45  # as augmentation makes none
    answer = recover(make_head(label))
    assert_not_identifiable(answer, "no augmented label explains the gradient")
    assert answer.labels is not None
    assert answer.labels.isfinite().all()  # a guess stays, the one of the least misfit


def test_no_label_is_outside_of_the_simplex(make_head: Build) -> None:
    label = np.full(10, 0.3)
    label[3] = -1.7  # every entry but one alike: the equations alone are satisfied
    assert_not_identifiable(recover(make_head(label)), "no augmented label explains the gradient")
    label[:] = -0.02
    label[3] = 1.18
    assert_not_identifiable(recover(make_head(label)), "no augmented label explains the gradient")


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_a_gradient_of_another_loss(noise: float, make_head: Build) -> None:
    def binary(logits: Array, label: Array, feature: Array) -> Array:
        return np.outer(1 / (1 + np.exp(-logits)) - label, feature) / len(label)

    answer = recover(make_head(SMOOTHED, gradient=binary, noise=noise))
    assert_not_identifiable(answer, "another loss is behind it")


@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_rows_that_do_not_sum_to_zero_are_no_softmaxs(size: float, make_head: Build) -> None:
    def shifted(logits: Array, label: Array, feature: Array) -> Array:
        p = np.exp(logits) / np.exp(logits).sum()
        return np.outer(p - label + size / 10, feature)  # centring would take this out

    reason = {1.0: "another loss", 1e-5: "no augmented label explains the gradient"}[size]
    assert_not_identifiable(recover(make_head(SMOOTHED, gradient=shifted)), reason)


def test_too_few_equations(make_head: Build) -> None:
    for seed in range(4):
        label = 0.7 * np.eye(3)[1] + 0.3 / 3
        answer = recover(make_head(label, seed=seed))
        assert_not_identifiable(answer, "3 classes give no more equations than unknowns; ")
        assert answer.labels is None
        assert answer.examples[0].label_std is None


def test_noise_hides_the_gradient(make_head: Build) -> None:
    answer = recover(make_head(SMOOTHED, noise=1.0, width=200))
    assert_not_identifiable(answer, "noise hides the gradient: its direction is uncertain by ")
    assert answer.labels is not None
    assert answer.labels.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_labels_fit_equally_well(dtype: torch.dtype, make_head: Build) -> None:
    head = make_head(**two_signs(4.0), dtype=dtype)
    answer = recover(head)
    assert_not_identifiable(answer, "2 labels fit equally well")
    assert answer.labels is None
    assert answer.features is None  # of either sign
    assert answer.examples[0].label_std is None
    candidates = answer.examples[0].candidates
    assert candidates is not None
    mirrored = head.label[[1, 0, *range(2, 8)]]
    found = sorted(candidates.numpy().tolist())
    expected = sorted([head.label.tolist(), mirrored.tolist()])
    assert np.abs(np.array(found) - expected).max() < 1e-5  # float32


def test_noise_leaves_two_labels_possible(make_head: Build) -> None:
    answer = recover(make_head(**two_signs(4.0), noise=1e-4))
    assert_not_identifiable(answer, "noise leaves 2 labels possible")
    assert answer.labels is not None
    assert answer.labels.isfinite().all()  # one of them is likelier
    candidates = answer.examples[0].candidates
    assert candidates is not None
    assert candidates.argmax(dim=1).sort().values.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"noise": 0.03, "width": 200}, "noise leaves the label uncertain by ±"),
        ({"dtype": torch.float16, "spread": 0.1}, "the rounding to 16 bits leaves the label "),
        ({"dtype": torch.float32, "spread": 1e-5}, "float rounding (the network is saturated"),
    ],
    ids=["noise", "16 bits", "float32"],
)
def test_bars_that_are_too_wide(settings: dict[str, Any], cause: str, make_head: Build) -> None:
    answer = recover(make_head(SMOOTHED, **settings))
    assert_not_identifiable(answer, cause)
    assert answer.reason is not None
    assert answer.reason.endswith("more than 0.01")
    assert answer.labels is not None
    assert answer.labels.isfinite().all()
    std = answer.examples[0].label_std
    assert std is not None
    assert std.isfinite().all()


def test_the_tolerance_decides_which_bars_are_too_wide(make_head: Build) -> None:
    head = make_head(SMOOTHED, noise=1e-3, width=200)
    loose, tight = recover(head, 1e-2), recover(head, 5e-4)
    assert loose.status is Status.RECOVERED
    assert_not_identifiable(tight, "noise leaves the label uncertain by ±")
    assert loose.labels is not None
    assert tight.labels is not None
    assert torch.equal(loose.labels, tight.labels)


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_a_factor_is_part_of_the_answer(factor: float, make_head: Build) -> None:
    answer = recover(make_head(SMOOTHED, factor=factor))
    assert answer.status is Status.RECOVERED, answer.reason
    assert answer.gradient_scale == pytest.approx(factor, rel=1e-6)
    assert error_of(answer, SMOOTHED) < 1e-6


def test_under_noise_a_wider_model_must_earn_its_unknowns(make_head: Build) -> None:
    for seed in range(10):
        answer = recover(make_head(np.eye(10)[3], noise=1e-3, seed=seed))
        found = answer.examples[0].augmentation
        assert found is not None
        assert found.type == "hard"
        answer = recover(make_head(SMOOTHED, noise=1e-3, seed=seed))
        found = answer.examples[0].augmentation
        assert found is not None
        assert found.type == "label-smoothing"
