"""Conformance of an attack's answer: whether it fits what was attacked and claims what is so."""

from __future__ import annotations

import re
from typing import Any

from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks import LabelRecovery, Reconstruction, Status
from fl_sim.testing.cases import SHAPE, Case
from fl_sim.testing.rules import ConformanceError, Rule, Subject

LABEL_ERROR = 1e-2
"""L∞ error of a label that RECOVERED stays below, or an attack's own tolerance if it is less."""
IMAGE_ERROR = 1e-5
"""Mean square error of an image at 50 dB, which RECOVERED stays below."""
MASS_ERROR = 1e-3
"""Relative error of a label mass's sum: float32 sums are within 1e-5."""


def check_no_claim(answer: LabelRecovery | Reconstruction, reason: str = "") -> None:
    """Check that an answer calls nothing RECOVERED, as a whole or of an example, and says why.

    Args:
        answer: of any attack.
        reason: words that its reason must hold.

    Raises:
        ConformanceError: something is called RECOVERED, or the reason is another.
    """
    statuses = (answer.status, *answer.statuses)
    if Status.RECOVERED in statuses:
        rule = f"nothing may be RECOVERED, found {', '.join(statuses)}"
        raise ConformanceError("the answer", Rule.HONEST, rule)
    if reason not in str(answer.reason):
        rule = f"its reason must hold {reason!r}, found {answer.reason!r}"
        raise ConformanceError("the answer", Rule.WELL_FORMED, rule)


def check_label_answer(subject: Subject, case: Case, answer: Any) -> None:
    """Check that a label recovery fits the case, then its claims against the truth.

    Raises:
        ConformanceError: either is wrong.
    """
    leak, classes = case.leak, case.labels.shape[1]
    _require_kind(subject, case, answer, LabelRecovery)
    _require_fit(subject, case, answer, batch_size=leak.steps.distinct, classes=classes)
    size = answer.batch_size
    told = leak.steps.distinct if answer.examples else leak.batch_size
    _require_form(
        subject,
        case,
        size is None or told in (None, size),
        f"batch_size must be {told} or None, found {size!r}",
    )
    if answer.mass is not None:
        estimated = size * leak.local_steps if size and leak.batch_size is None else 1
        total = leak.processed or estimated
        error = abs(float(answer.mass.sum()) / total - 1)
        rule = f"mass must sum to {total}, found {answer.mass.sum()}"
        _require_form(subject, case, error <= MASS_ERROR, rule)
    claimed = _claimed(answer.statuses, answer.labels)
    if claimed is not None:
        off = (claimed[:, None] - case.labels.double()).abs().amax(dim=-1)
        _require_true(subject, case, off, LABEL_ERROR, "a label", "an L∞ error")


def check_reconstruction(subject: Subject, case: Case, answer: Any) -> None:
    """Check that a reconstruction fits the case, then its claims against the truth.

    Raises:
        ConformanceError: either is wrong.
    """
    _require_kind(subject, case, answer, Reconstruction)
    _require_fit(subject, case, answer, batch_size=case.leak.steps.distinct, shape=SHAPE)
    rule = "images must be None under NOT_APPLICABLE"
    _require_form(
        subject, case, answer.images is None or answer.status is not Status.NOT_APPLICABLE, rule
    )
    claimed = _claimed(answer.statuses, answer.images)
    if claimed is not None:
        off = (claimed[:, None] - case.images.double()).square().mean(dim=(-3, -2, -1))
        _require_true(subject, case, off, IMAGE_ERROR, "an image", "a mean square error")


def _require_form(subject: Subject, case: Case, holds: object, rule: str) -> None:
    subject.require(holds, Rule.WELL_FORMED, f"on {case.name} {rule}")


def _require_kind(subject: Subject, case: Case, answer: Any, kind: type) -> None:
    """Check the type, and that reasons are single sentences; the rest was when it was made."""
    found = type(answer).__name__
    rule = f"it must answer a {kind.__name__}, found {found}"
    _require_form(subject, case, isinstance(answer, kind), rule)
    for part in (answer, *answer.examples):
        rule = f"reason must be one sentence under {part.status}, found {part.reason!r}"
        is_one = part.reason is None or not re.search(r"[.!?] +[A-Z]", part.reason)
        _require_form(subject, case, is_one, rule)


def _require_fit(subject: Subject, case: Case, answer: Any, **attacked: Any) -> None:
    try:
        answer.require_fit(**attacked)
    except ValueError as error:
        rule = f"on {case.name} {error}"
        raise ConformanceError(subject.title, Rule.WELL_FORMED, rule) from error


def _claimed(statuses: tuple[Status, ...], rows: Tensor | None) -> Tensor | None:
    """Return the rows that are called RECOVERED; None without any."""
    chosen = [row for row, status in enumerate(statuses) if status is Status.RECOVERED]
    return None if rows is None or not chosen else rows[chosen]


def _require_true(
    subject: Subject, case: Case, off: Tensor, limit: float, what: str, error: str
) -> None:
    """Raise unless the claimed rows can be paired with examples of which each is a recovery.

    Args:
        subject: the attack.
        case: that it answered on.
        off: (claims, examples), the error of each pair.
        limit: of the error.
        what: a row, in words.
        error: the measure, in words with their article.
    """
    place = f"on {case.name} it calls {what} RECOVERED"
    subject.require(case.determines, Rule.HONEST, f"{place}, which nothing in the leak determines")
    subject.require(
        off.shape[0] <= off.shape[1],
        Rule.HONEST,
        f"{place} {off.shape[0]} times, for {off.shape[1]} in the batch",
    )
    rows, columns = linear_sum_assignment(off.numpy())
    worst = float(off[rows, columns].max())
    subject.require(
        worst <= limit, Rule.HONEST, f"{place} with {error} of {worst:.2g}, above {limit:g}"
    )
