"""What the signs of one example's gradient say of its label."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attacks import GradientLeak, Status
from attacks.facts import Fact, HardLabels, LabelSmoothing, Mixup, SignsOnly
from attacks.labels.soft_label import SoftLabelRecovery
from defenses.base import Place
from defenses.label_smoothing import smooth_labels
from defenses.sign import Sign

Make = Callable[..., Any]


def signs_of(leak: GradientLeak, *facts: Fact) -> GradientLeak:
    """Return the leak of a client that sends signs, to who knows."""
    sent = Sign().on_update(leak.gradients, Place(), torch.Generator())
    return dataclasses.replace(leak, gradients=sent, knowledge=(SignsOnly(), *facts))


def answer_of(leak: GradientLeak) -> Any:
    return SoftLabelRecovery()(leak, generator=torch.Generator())


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("seed", range(3))
def test_a_hard_label_is_recovered(
    bias: bool, seed: int, make_model: Make, make_victim: Make
) -> None:
    label = torch.nn.functional.one_hot(torch.tensor([seed * 3]), 10).double()
    victim = make_victim(make_model(10, bias=bias), label, seed=seed)
    answer = answer_of(signs_of(victim.leak, HardLabels()))
    assert answer.status is Status.RECOVERED, answer.reason
    assert torch.equal(answer.labels, label)


@pytest.mark.parametrize("fact", [LabelSmoothing(0.2), None], ids=["told", "untold"])
def test_a_smoothed_label_is_shown_and_not_claimed(
    fact: Fact | None, make_model: Make, make_victim: Make
) -> None:
    hard = torch.nn.functional.one_hot(torch.tensor([4]), 10).double()
    label = smooth_labels(hard, 0.2)
    leak = signs_of(make_victim(make_model(10), label).leak, *([fact] if fact else []))
    answer = answer_of(leak)
    assert answer.status is Status.NOT_IDENTIFIABLE
    assert torch.allclose(answer.labels, label if fact else hard)


def test_a_mixed_label_and_two_that_are_said_to_be_one_are_not_claimed(
    make_model: Make, make_victim: Make
) -> None:
    mixed = torch.zeros(1, 10, dtype=torch.float64)
    mixed[0, 2], mixed[0, 5] = 0.7, 0.3
    answer = answer_of(signs_of(make_victim(make_model(10), mixed).leak, Mixup()))
    assert answer.status is Status.NOT_APPLICABLE
    assert "2 of 10 rows" in str(answer.reason)
    two = torch.eye(10, dtype=torch.float64)[[1, 7]]
    batch = signs_of(make_victim(make_model(10), two).leak, HardLabels())
    alone = dataclasses.replace(batch, batch_size=1, examples=1)
    assert Status.RECOVERED not in answer_of(alone).statuses
