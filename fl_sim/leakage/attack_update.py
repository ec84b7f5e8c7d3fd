"""Attack one client's update."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks import GradientLeak, LabelRecovery, Reconstruction, Status
from fl_sim.leakage.plan import AttackPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a plan's attacks answered on one leak, in the form that `attacks.types` asks for.

    Args:
        labels: of the label attack.
        image: of the image attack; None without one.
        label_seconds: that the label attack took.
        image_seconds: that the image attack took; None without one.
    """

    labels: LabelRecovery
    image: Reconstruction | None
    label_seconds: float
    image_seconds: float | None

    @property
    def rows(self) -> int:
        """How many examples it holds; 0 from attacks that count, and from those that failed."""
        images = None if self.image is None else self.image.images
        parts = (self.labels.labels, images)
        return max(0 if part is None else len(part) for part in parts)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it to compare with the truth."""
        return not self.rows and self.labels.mass is None


def attack_update(
    leak: GradientLeak,
    plan: AttackPlan,
    *,
    generator: torch.Generator,
    classes: int | None = None,
) -> Answer:
    """Run a plan's attacks on one leak.

    An attack that raises, or whose answer has another form than it must have, answers FAILED, with
    the reason.

    Args:
        leak: what the server sees, with the plan's knowledge.
        plan: the attacks.
        generator: of the attacks' random draws.
        classes: K, which the answers must agree with; None where it isn't known.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4))
        >>> label = torch.tensor([[0.9, 0.1, 0.0, 0.0]])
        >>> torch.nn.functional.cross_entropy(model(torch.ones(1, 1, 4, 4)), label).backward()
        >>> gradients = {name: p.grad for name, p in model.named_parameters()}
        >>> leak = GradientLeak(model, gradients, 1, (1, 4, 4))
        >>> plan = AttackPlan.by_name("soft-label")
        >>> answer = attack_update(leak, plan, generator=torch.Generator())
        >>> answer.labels.status.value, answer.rows
        ('RECOVERED', 1)
    """
    started = time.perf_counter()
    try:
        labels = plan.label(leak, generator=generator)
        _check_answer(labels, LabelRecovery, leak.batch_size, labels=(classes,), features=(None,))
        _check_mass(labels.mass, classes)
    except Exception as error:  # a third party's attack may raise anything
        _log_failure(plan.label_name, error)
        labels = LabelRecovery(Status.FAILED, f"{type(error).__name__}: {error}")
    label_seconds = time.perf_counter() - started
    if plan.image is None:
        return Answer(labels, None, label_seconds, None)
    started = time.perf_counter()
    try:
        image = plan.image(leak, labels, generator=generator)
        rows = leak.batch_size or (None if labels.labels is None else len(labels.labels))
        _check_answer(image, Reconstruction, rows, images=leak.input_shape)
    except Exception as error:  # likewise
        _log_failure(plan.image_name, error)
        image = Reconstruction(Status.FAILED, f"{type(error).__name__}: {error}")
    return Answer(labels, image, label_seconds, time.perf_counter() - started)


def _log_failure(name: str | None, error: Exception) -> None:
    logger.warning("attack %s raised %s: %s", name, type(error).__name__, error)
    logger.debug("attack %s", name, exc_info=error)


def _check_answer(
    answer: object, kind: type, rows: int | None, **tensors: tuple[int | None, ...]
) -> None:
    """Raise unless an attack's answer has the form that `attacks.types` asks for.

    Args:
        answer: what the attack returned.
        kind: the type that it must have.
        rows: number of rows; None takes the first tensor's.
        tensors: attribute -> the shape of one row, None where any size will do.
    """
    if not isinstance(answer, kind):
        raise TypeError(f"the answer must be a {kind.__name__}, found {type(answer).__name__}")
    status = getattr(answer, "status", None)
    if not isinstance(status, Status):
        raise TypeError(f"status must be a Status, found {status!r}")
    for name, shape in tensors.items():
        found = getattr(answer, name)
        if found is None:
            continue
        rows = rows or len(found)
        required, sizes = (rows, *shape), tuple(found.shape)
        pairs = zip(required, sizes, strict=False)
        if len(sizes) != len(required) or any(rule not in (None, size) for rule, size in pairs):
            raise ValueError(f"{name} must have the shape {required}, found {sizes}")
    for name in ("statuses", "reasons", "augmentations", "residual", "certificate"):
        value = getattr(answer, name, None)
        entries = 0 if value is None else len(value)
        if rows and entries not in (0, rows):
            raise ValueError(f"{name} must have {rows} entries, found {entries}")


def _check_mass(mass: Tensor | None, classes: int | None) -> None:
    """Raise unless an attack's label mass is one."""
    if mass is None:
        return
    if mass.ndim != 1 or classes not in (None, len(mass)):
        raise ValueError(f"mass must have the shape ({classes},), found {tuple(mass.shape)}")
    if not (mass.isfinite().all() and mass.min() >= 0 and mass.sum() > 0):
        raise ValueError(f"mass must be finite, at least 0 and not all 0, found {mass}")
