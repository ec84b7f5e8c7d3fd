"""An answer in another form than the documented one is refused, and so is a false claim."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attacks import LabelRecovery, Status
from attacks.types import Augmentation
from fl_sim.testing import ConformanceError, check_no_claim
from fl_sim.testing.answer import check_label_answer
from fl_sim.testing.cases import Case, hard_cases, ordinary_cases, perfect_recovery
from fl_sim.testing.rules import Subject

Fails = Callable[..., None]
SUBJECT = Subject("label attack 'mine'")
RECOVERED, FAILED = Status.RECOVERED, Status.FAILED
CASES = {case.name: case for case in (*ordinary_cases(), *hard_cases())}
NAN = float("nan")
LABEL = torch.full((1, 6), 1 / 6, dtype=torch.float64)
ROW = torch.ones(1, dtype=torch.float64)


def answer(case: Case, **fields: Any) -> LabelRecovery:
    """Return the right answer with other fields."""
    return dataclasses.replace(perfect_recovery(case), **fields)


def failed(**fields: Any) -> dict[str, Any]:
    return {"status": FAILED, "reason": "it gave up", "statuses": (), **fields}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.determines])
def test_the_truth_is_accepted(name: str) -> None:
    check_label_answer(SUBJECT, CASES[name], answer(CASES[name]))


@pytest.mark.parametrize(
    "fields",
    [
        {"labels": None},
        {"labels": LABEL * NAN, "statuses": (FAILED,)},
        {"augmentations": (Augmentation("hard"),), "residual": 0 * ROW, "certificate": 3 * ROW},
        {"mass": torch.full((6,), 1 / 6), "candidates": torch.eye(6)[:3]},
    ],
)
def test_every_documented_form_is_accepted(fields: dict[str, Any]) -> None:
    case = CASES["a smoothed label"]
    check_label_answer(SUBJECT, case, answer(case, **failed(**fields)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"status": "RECOVERED"}, "status must be a Status, found 'RECOVERED'"),
        ({"reason": "it worked"}, "reason must be None under RECOVERED"),
        (failed(reason=None), "reason must be one sentence under FAILED, found None"),
        (failed(reason=" "), "reason must be one sentence"),
        (failed(reason="It failed. Then it gave up."), "reason must be one sentence"),
        (failed(reason="it failed\nin line 3"), "reason must be one sentence"),
        ({"labels": LABEL[0]}, "labels must be a (1, 6) float64 tensor, found (6,) float64"),
        ({"labels": LABEL.repeat(1, 2)}, "found (1, 12)"),
        ({"labels": LABEL.repeat(2, 1)}, "found (2, 6)"),
        ({"labels": LABEL.float()}, "found (1, 6) float32"),
        ({"labels": LABEL.tolist()}, "found list"),
        ({"labels": LABEL.where(torch.arange(6) > 0, NAN)}, "or NaN altogether"),
        ({"labels": LABEL.clone().requires_grad_()}, "labels must be detached"),
        ({"features": torch.zeros(3)}, "features must be a (1, any) float64"),
        (failed(statuses=(FAILED, FAILED)), "statuses must have 1 entries or none, found 2"),
        (failed(statuses=[FAILED]), "statuses must be a tuple"),
        (failed(statuses=(None,)), "each of the statuses must be of Status"),
        (failed(augmentations=("hard",)), "each of the augmentations must be of Augmentation"),
        (failed(reasons=("why", "why")), "reasons must have 1 entries or none, found 2"),
        (
            failed(statuses=(FAILED,), reasons=(None,)),
            "each of the reasons must be None under RECOVERED and else a",
        ),
        ({"residual": ROW * -1.0}, "residual must be NaN or finite numbers of at least 0"),
        ({"residual": 1.0}, "residual must be a (1) float64 tensor, found float"),
        ({"certificate": ROW * float("inf")}, "certificate must be NaN or finite"),
        ({"feature_bar": ROW.repeat(2)}, "feature_bar must be a (1) float64"),
        ({"label_std": ROW}, "label_std must be a (1, 6) float64"),
        ({"gradient_scale": 0.0}, "gradient_scale must be None or a finite number above 0"),
        ({"candidates": torch.zeros(2, 3)}, "candidates must be a (any, 6) floating"),
        ({"candidates": torch.full((2, 6), NAN)}, "candidates must be finite"),
        ({"mass": torch.ones(6)}, "mass must sum to 1, found 6"),
        ({"batch_size": 2}, "batch_size must be 1 or None, found 2"),
        ({"labels": None}, "RECOVERED must come with labels"),
        ({"statuses": (FAILED,)}, "RECOVERED must hold for every example"),
        ({"labels": LABEL * NAN}, "labels that are RECOVERED must be finite"),
        (failed(labels=None, statuses=(RECOVERED,)), "a status RECOVERED must come with labels"),
    ],
)
def test_another_form_is_refused(fields: dict[str, Any], words: str, fails: Fails) -> None:
    case = CASES["a smoothed label"]
    wrong = answer(case, **fields)
    fails(check_label_answer, SUBJECT, case, wrong, rule="well-formed", words=words)


def test_another_type_is_refused(fails: Fails) -> None:
    case = CASES["a smoothed label"]
    words = "it must answer a LabelRecovery, found dict"
    fails(check_label_answer, SUBJECT, case, {}, rule="well-formed", words=words)


def test_claims_are_held_against_any_order_of_the_batch(fails: Fails) -> None:
    case = CASES["a batch"]
    rows = case.labels.double()
    check_label_answer(SUBJECT, case, answer(case, labels=rows.flip(0)))
    twice = answer(case, labels=rows[[0, 0, 1]])
    words = "on a batch it calls a label RECOVERED with an L∞ error of"
    fails(check_label_answer, SUBJECT, case, twice, rule="honest", words=words)


def test_a_claim_for_one_row_is_held_against_the_truth(fails: Fails) -> None:
    case = CASES["a batch"]
    rows = case.labels.double()
    one = failed(
        labels=torch.stack([rows[0] * NAN, rows[1], rows[2] * NAN]),
        statuses=(FAILED, RECOVERED, FAILED),
    )
    check_label_answer(SUBJECT, case, answer(case, **one))
    wrong = answer(case, **{**one, "labels": rows + 0.02})
    fails(check_label_answer, SUBJECT, case, wrong, rule="honest", words="0.02, above 0.01")


def test_more_claims_than_examples_are_refused(fails: Fails) -> None:
    case = CASES["a batch of unknown size"]
    rows = case.labels.double().repeat(2, 1)
    none = {
        "features": None,
        "feature_bar": None,
        "statuses": (),
        "augmentations": (),
        "batch_size": None,
    }
    many = answer(case, labels=rows, **none)
    words = "RECOVERED 6 times, for 3 in the batch"
    fails(check_label_answer, SUBJECT, case, many, rule="honest", words=words)


def test_nothing_may_be_claimed_of_gradients_that_say_nothing(fails: Fails) -> None:
    case = CASES["gradients that are zero"]
    words = "which nothing in the leak determines"
    fails(check_label_answer, SUBJECT, case, answer(case), rule="honest", words=words)


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        (LabelRecovery(RECOVERED), "honest"),
        (LabelRecovery(FAILED, "no", statuses=(FAILED, RECOVERED)), "honest"),
        (LabelRecovery(FAILED), "well-formed"),
        (LabelRecovery(FAILED, "no", statuses=(FAILED,), reasons=(None,)), "well-formed"),
        (LabelRecovery(FAILED, "it gave up"), "well-formed"),
    ],
)
def test_an_answer_that_claims_or_does_not_say_why_is_told(
    answer: LabelRecovery, rule: str
) -> None:
    with pytest.raises(ConformanceError, match=f"the answer must be {rule}: "):
        check_no_claim(answer, "no")


def test_an_answer_that_claims_nothing_passes() -> None:
    check_no_claim(LabelRecovery(FAILED, "no luck", statuses=(FAILED,), reasons=("no",)), "luck")
