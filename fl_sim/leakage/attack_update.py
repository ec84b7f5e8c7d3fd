"""Attack one client's update."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch

from attacks import GradientLeak, LabelRecovery, Reconstruction, Status
from attacks.answers import require_type
from fl_sim.leakage.plan import AttackPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a plan's attacks answered on one leak.

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
        images = () if self.image is None else self.image.examples
        return max(len(self.labels.examples), len(images))

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

    An attack that raises, or whose answer doesn't fit the leak, answers FAILED, with the reason.

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
        require_type("the answer", labels, LabelRecovery)
        labels.require_fit(batch_size=leak.steps.distinct, classes=classes)
    except Exception as error:  # a third party's attack may raise anything
        _log_failure(plan.label_name, error)
        labels = LabelRecovery(Status.FAILED, _sentence(error))
    label_seconds = time.perf_counter() - started
    if plan.image is None:
        return Answer(labels, None, label_seconds, None)
    started = time.perf_counter()
    try:
        image = plan.image(leak, labels, generator=generator)
        require_type("the answer", image, Reconstruction)
        size = leak.steps.distinct or len(labels.examples) or None
        image.require_fit(batch_size=size, shape=leak.input_shape)
    except Exception as error:  # likewise
        _log_failure(plan.image_name, error)
        image = Reconstruction(Status.FAILED, _sentence(error))
    return Answer(labels, image, label_seconds, time.perf_counter() - started)


def _log_failure(name: str | None, error: Exception) -> None:
    logger.warning("attack %s raised %s: %s", name, type(error).__name__, error)
    logger.debug("attack %s", name, exc_info=error)


def _sentence(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
