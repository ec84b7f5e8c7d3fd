"""Conformance of an attack's answer: its form, and whether what it claims is so."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks import LabelRecovery, Reconstruction, Status
from attacks.types import Augmentation
from fl_sim.testing.cases import SHAPE, Case
from fl_sim.testing.rules import ConformanceError, Rule, Subject

LABEL_ERROR = 1e-2
"""L∞ error of a label that RECOVERED stays below, or an attack's own tolerance if it is less."""
IMAGE_ERROR = 1e-5
"""Mean square error of an image at 50 dB, which RECOVERED stays below."""
MASS_ERROR = 1e-3
"""Relative error of a label mass's sum: float32 sums are within 1e-5."""


def check_no_claim(answer: LabelRecovery | Reconstruction, reason: str = "") -> None:
    """Check that an answer calls nothing RECOVERED, as a whole or row by row, and says why.

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
    reasons = [answer.reason, *answer.reasons]
    if not all(reasons) or reason not in str(answer.reason):
        rule = f"its reasons must be there, the first with {reason!r}, found {reasons}"
        raise ConformanceError("the answer", Rule.WELL_FORMED, rule)


def check_label_answer(subject: Subject, case: Case, answer: Any) -> None:
    """Check the form of a label recovery, then its claims against the truth.

    Raises:
        ConformanceError: either is wrong.
    """
    form = _Form(subject, case, answer)
    form.common(LabelRecovery)
    classes = case.labels.shape[1]
    form.rows("labels", (classes,))
    form.rows("features", (None,))
    form.entries("augmentations", Augmentation)
    form.measure("certificate")
    form.measure("feature_bar")
    form.tensor("label_std", (form.size, classes), torch.float64)
    scale = answer.gradient_scale
    form.require(
        scale is None or (isinstance(scale, float) and 0 < scale < math.inf),
        f"gradient_scale must be None or a finite number above 0, found {scale!r}",
    )
    form.tensor("candidates", (None, classes))
    form.tensor("mass", (classes,))
    size = answer.batch_size
    known = case.leak.batch_size
    form.require(
        size is None or (isinstance(size, int) and size >= 1 and known in (None, size)),
        f"batch_size must be {known or 'at least 1'} or None, found {size!r}",
    )
    if answer.mass is not None:
        total = 1 if size is None else size * case.leak.local_steps
        error = abs(float(answer.mass.sum()) / total - 1)
        form.require(error <= MASS_ERROR, f"mass must sum to {total}, found {answer.mass.sum()}")
        form.require((answer.mass >= 0).all(), f"mass must be at least 0, found {answer.mass}")
    claimed = form.claimed("labels")
    if claimed is not None:
        off = (claimed[:, None] - case.labels.double()).abs().amax(dim=-1)
        _require_true(form, off, LABEL_ERROR, "a label", "an L∞ error")


def check_reconstruction(subject: Subject, case: Case, answer: Any) -> None:
    """Check the form of a reconstruction, then its claims against the truth.

    Raises:
        ConformanceError: either is wrong.
    """
    form = _Form(subject, case, answer)
    form.common(Reconstruction)
    form.rows("images", SHAPE)
    images = answer.images
    ends = answer.pixel_range
    form.require(
        isinstance(ends, tuple)
        and len(ends) == 2
        and all(isinstance(end, int | float) and math.isfinite(end) for end in ends)
        and ends[0] < ends[1],
        f"pixel_range must be two finite numbers, the lower first, found {ends!r}",
    )
    if images is not None:
        inside = ((images >= ends[0]) & (images <= ends[1])) | images.isnan()
        rule = f"images must be in pixel_range, [{ends[0]:g}, {ends[1]:g}], or NaN"
        form.require(inside.all(), f"{rule} where there is none")
        form.require(
            answer.status is not Status.NOT_APPLICABLE, "images must be None under NOT_APPLICABLE"
        )
    claimed = form.claimed("images")
    if claimed is not None:
        off = (claimed[:, None] - case.images.double()).square().mean(dim=(-3, -2, -1))
        _require_true(form, off, IMAGE_ERROR, "an image", "a mean square error")


def _require_true(form: _Form, off: Tensor, limit: float, what: str, error: str) -> None:
    """Raise unless the claimed rows can be paired with examples of which each is a recovery.

    Args:
        form: of the answer.
        off: (claims, examples), the error of each pair.
        limit: of the error.
        what: a row, in words.
        error: the measure, in words with their article.
    """
    place = f"on {form.case.name} it calls {what} RECOVERED"
    form.subject.require(
        form.case.determines, Rule.HONEST, f"{place}, which nothing in the leak determines"
    )
    form.subject.require(
        off.shape[0] <= off.shape[1],
        Rule.HONEST,
        f"{place} {off.shape[0]} times, for {off.shape[1]} in the batch",
    )
    rows, columns = linear_sum_assignment(off.numpy())
    worst = float(off[rows, columns].max())
    form.subject.require(
        worst <= limit, Rule.HONEST, f"{place} with {error} of {worst:.2g}, above {limit:g}"
    )


class _Form:
    """What both kinds of answers have in common."""

    def __init__(self, subject: Subject, case: Case, answer: Any) -> None:
        self.subject = subject
        self.case = case
        self.answer = answer
        self.size = case.leak.batch_size

    def require(self, holds: object, rule: str) -> None:
        self.subject.require(holds, Rule.WELL_FORMED, f"on {self.case.name} {rule}")

    def common(self, kind: type) -> None:
        """Check type, status and reason."""
        answer = self.answer
        found = type(answer).__name__
        self.require(isinstance(answer, kind), f"it must answer a {kind.__name__}, found {found}")
        self.require(
            isinstance(answer.status, Status), f"status must be a Status, found {answer.status!r}"
        )
        reason = answer.reason
        if answer.status is Status.RECOVERED:
            self.require(reason is None, f"reason must be None under RECOVERED, found {reason!r}")
        else:
            self.require(
                isinstance(reason, str) and _is_one_sentence(reason),
                f"reason must be one sentence under {answer.status}, found {reason!r}",
            )

    def rows(self, name: str, shape: tuple[int | None, ...]) -> None:
        """Check a tensor of one row for each example, each finite or all NaN; and the statuses."""
        value = getattr(self.answer, name)
        if value is not None and self.size is None:
            self.size = len(value)
        self.tensor(name, (self.size, *shape), torch.float64)
        if value is not None:
            row = value.flatten(1)
            whole = row.isfinite().all(dim=1) | row.isnan().all(dim=1)
            self.require(whole.all(), f"each of the {name} must be finite, or NaN altogether")
        self.entries("statuses", Status)
        self.entries("reasons", str)
        self.measure("residual")
        for status, why in zip(self.answer.statuses, self.answer.reasons, strict=False):
            self.require(
                (why is None) == (status is Status.RECOVERED),
                f"each of the reasons must be None under RECOVERED and else a sentence, found "
                f"{why!r} under {status}",
            )

    def tensor(
        self, name: str, shape: tuple[int | None, ...], dtype: torch.dtype | None = None
    ) -> None:
        """Check a tensor's shape, None for any size, and its type; others than rows are finite."""
        value = getattr(self.answer, name)
        if value is None:
            return
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        rule = f"{name} must be a ({sizes}) {str(dtype or 'floating').removeprefix('torch.')}"
        self.require(isinstance(value, Tensor), f"{rule} tensor, found {type(value).__name__}")
        fits = len(shape) == value.ndim and all(
            size in (None, found) for size, found in zip(shape, value.shape, strict=True)
        )
        kind = value.is_floating_point() if dtype is None else value.dtype == dtype
        found = f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        self.require(fits and kind, f"{rule} tensor, found {found}")
        self.require(not value.requires_grad, f"{name} must be detached from autograd's graph")
        self.require(dtype or value.isfinite().all(), f"{name} must be finite")

    def entries(self, name: str, kind: type) -> None:
        """Check a tuple of one entry for each example."""
        entries = getattr(self.answer, name)
        self.require(isinstance(entries, tuple), f"{name} must be a tuple, found {entries!r}")
        allowed = (0, self.size) if self.size is not None else (len(entries),)
        self.require(
            len(entries) in allowed,
            f"{name} must have {self.size} entries or none, found {len(entries)}",
        )
        may_be_none = kind is not Status
        self.require(
            all(isinstance(e, kind) or (may_be_none and e is None) for e in entries),
            f"each of the {name} must be of {kind.__name__}, found {entries!r}",
        )

    def measure(self, name: str) -> None:
        """Check a number for each example: NaN, or finite and at least 0."""
        self.tensor(name, (self.size,), torch.float64)
        value = getattr(self.answer, name)
        if value is not None:
            rule = f"{name} must be NaN or finite numbers of at least 0, found {value}"
            self.require((value.isnan() | ((value >= 0) & value.isfinite())).all(), rule)

    def claimed(self, name: str) -> Tensor | None:
        """Return the rows that are called RECOVERED; None without any."""
        answer = self.answer
        value: Tensor | None = getattr(answer, name)
        statuses = answer.statuses or (answer.status,) * (0 if value is None else len(value))
        if answer.status is Status.RECOVERED:
            self.require(value is not None, f"RECOVERED must come with {name}")
            self.require(
                all(status is Status.RECOVERED for status in statuses),
                "RECOVERED must hold for every example, and not all statuses are",
            )
        chosen = [row for row, status in enumerate(statuses) if status is Status.RECOVERED]
        if value is None or not chosen:
            self.require(not chosen, f"a status RECOVERED must come with {name}")
            return None
        rows = value[chosen]
        self.require(rows.isfinite().all(), f"{name} that are RECOVERED must be finite")
        return rows


def _is_one_sentence(text: str) -> bool:
    return bool(text.strip()) and "\n" not in text and not re.search(r"[.!?] +[A-Z]", text)
