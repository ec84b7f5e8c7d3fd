"""An answer that doesn't fit what was attacked is refused, and so is a false claim."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks import ExampleLabel, LabelRecovery, Status
from attacks.answers import without_claim
from fl_sim.testing import ConformanceError, check_no_claim
from fl_sim.testing.answer import check_label_answer
from fl_sim.testing.cases import Case, hard_cases, ordinary_cases, perfect_recovery
from fl_sim.testing.rules import Subject

Fails = Callable[..., None]
SUBJECT = Subject("label attack 'mine'")
RECOVERED, FAILED = Status.RECOVERED, Status.FAILED
CASES = {case.name: case for case in (*ordinary_cases(), *hard_cases())}
ONE = CASES["a smoothed label"]


def claimed(labels: Tensor) -> LabelRecovery:
    return LabelRecovery.of([ExampleLabel(RECOVERED, label=label) for label in labels])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.determines])
def test_the_truth_is_accepted(name: str) -> None:
    check_label_answer(SUBJECT, CASES[name], perfect_recovery(CASES[name]))


def test_an_answer_without_examples_is_accepted() -> None:
    check_label_answer(SUBJECT, ONE, LabelRecovery(FAILED, "it gave up"))
    mass = torch.full((6,), 1 / 6)
    check_label_answer(SUBJECT, ONE, LabelRecovery(FAILED, "it counts", mass=mass))


LABEL = torch.full((6,), 1 / 6, dtype=torch.float64)
UNFIT: dict[str, tuple[Any, str]] = {
    "another type": ({}, "it must answer a LabelRecovery, found dict"),
    "two sentences": (
        LabelRecovery(FAILED, "It failed. Then it gave up."),
        "reason must be one sentence under FAILED",
    ),
    "two examples": (claimed(LABEL.repeat(2, 1)), "must answer on 1 examples or none, found 2"),
    "more classes": (claimed(torch.ones(1, 12).double()), "must have 6 classes, found 12"),
    "another batch": (LabelRecovery(FAILED, "no", batch_size=2), "must be 1 or None, found 2"),
    "another mass": (
        LabelRecovery(FAILED, "it counts", mass=torch.ones(6)),
        "mass must sum to 1, found 6",
    ),
    "a mass of other classes": (
        LabelRecovery(FAILED, "it counts", mass=torch.ones(5) / 5),
        "mass must have 6 classes, found 5",
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_an_answer_that_does_not_fit_is_refused(kind: str, fails: Fails) -> None:
    answer, words = UNFIT[kind]
    fails(check_label_answer, SUBJECT, ONE, answer, rule="well-formed", words=words)


def test_claims_are_held_against_any_order_of_the_batch(fails: Fails) -> None:
    case = CASES["a batch"]
    rows = case.labels.double()
    check_label_answer(SUBJECT, case, claimed(rows.flip(0)))
    words = "on a batch it calls a label RECOVERED with an L∞ error of"
    twice = claimed(rows[[0, 0, 1]])
    fails(check_label_answer, SUBJECT, case, twice, rule="honest", words=words)


def test_a_claim_for_one_row_is_held_against_the_truth(fails: Fails) -> None:
    case = CASES["a batch"]
    missing = ExampleLabel(FAILED, "it gave up")

    def second(label: Tensor) -> LabelRecovery:
        return LabelRecovery.of([missing, ExampleLabel(RECOVERED, label=label), missing])

    label = case.labels[1].double()
    check_label_answer(SUBJECT, case, second(label))
    words = "0.02, above 0.01"
    fails(check_label_answer, SUBJECT, case, second(label + 0.02), rule="honest", words=words)


def test_more_claims_than_examples_are_refused(fails: Fails) -> None:
    case = CASES["a batch of unknown size"]
    many = claimed(case.labels.double().repeat(2, 1))
    words = "RECOVERED 6 times, for 3 in the batch"
    fails(check_label_answer, SUBJECT, case, many, rule="honest", words=words)


def test_nothing_may_be_claimed_of_gradients_that_say_nothing(fails: Fails) -> None:
    case: Case = CASES["gradients that are zero"]
    words = "which nothing in the leak determines"
    fails(check_label_answer, SUBJECT, case, perfect_recovery(case), rule="honest", words=words)


def test_an_answer_that_claims_something_is_told() -> None:
    whole = perfect_recovery(CASES["a batch"])
    part = LabelRecovery.of([without_claim(whole.examples[0], "no"), *whole.examples[1:]])
    for answer in (whole, part):
        with pytest.raises(ConformanceError, match="the answer must be honest: "):
            check_no_claim(answer)


def test_an_answer_that_gives_another_reason_is_told() -> None:
    check_no_claim(LabelRecovery(FAILED, "no luck"), "luck")
    with pytest.raises(ConformanceError, match="the answer must be well-formed: "):
        check_no_claim(dataclasses.replace(LabelRecovery(FAILED, "it gave up")), "luck")
