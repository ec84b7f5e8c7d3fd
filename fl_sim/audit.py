"""Attack one client's update, and write down what it leaks."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from attacks import (
    IMAGE_ATTACKS,
    LABEL_ATTACKS,
    GradientLeak,
    ImageAttack,
    Knowledge,
    LabelAttack,
    LabelRecovery,
    Reconstruction,
    Status,
)
from fl_sim.federation import Federation
from fl_sim.records import LeakageRecord
from fl_sim.scoring import (
    Baseline,
    Truth,
    pair_examples,
    score_image,
    score_labels,
    score_mass,
)
from fl_sim.seeds import torch_generator

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class AttackPlan:
    """One label attack, perhaps an image attack on top of it, and when they run.

    Args:
        label_name: for the records.
        label: the attack.
        image_name: for the records; None without an image attack.
        image: the attack.
        knowledge: what the attacker knows of the clients' defenses; nothing when "unaware".
        attacker: "unaware" or "aware", for the records.
        covers: (server round, client) -> whether this attack runs.
    """

    label_name: str
    label: LabelAttack
    image_name: str | None = None
    image: ImageAttack | None = None
    knowledge: Knowledge = field(default_factory=Knowledge)
    attacker: str = "unaware"
    covers: Callable[[int, int], bool] = lambda server_round, client: True

    @classmethod
    def by_name(
        cls,
        label: str,
        image: str | None = None,
        *,
        label_options: Mapping[str, Any] | None = None,
        image_options: Mapping[str, Any] | None = None,
        **plan: Any,
    ) -> AttackPlan:
        """Build from registered names or `module:attr`.

        Raises:
            ValueError: a name or an option is unknown.
        """
        return cls(
            label,
            LABEL_ATTACKS.build(label, **(label_options or {})),
            image,
            None if image is None else IMAGE_ATTACKS.build(image, **(image_options or {})),
            **plan,
        )


class Judge(Protocol):
    """Who holds the truth: the simulator. A deployment has none."""

    @property
    def baseline(self) -> Baseline:
        """What an attacker guesses who sees no update."""

    def truth(self, client: int, server_round: int) -> Truth:
        """Return what the client trained on in the round's first step."""

    def label_mass(self, client: int, server_round: int) -> Tensor:
        """Return the sum (K,) of the labels that the client trained on in all the round's steps."""


@dataclass(frozen=True, eq=False)
class ReplayJudge:
    """Replays the truth from the scenario's seeds."""

    federation: Federation
    baseline: Baseline

    def truth(self, client: int, server_round: int) -> Truth:
        """Return what the client trained on in the round's first step."""
        batch = self.federation.training_batch(client, server_round, 0)
        return Truth(batch.images, batch.labels)

    def label_mass(self, client: int, server_round: int) -> Tensor:
        """Return the sum (K,) of the labels that the client trained on in all the round's steps."""
        steps = range(self.federation.scenario.client.local_steps)
        batches = [self.federation.training_batch(client, server_round, step) for step in steps]
        return torch.stack([batch.labels.double().sum(dim=0) for batch in batches]).sum(dim=0)


@dataclass(frozen=True, eq=False)
class Finding:
    """A record, and what it is about.

    Args:
        record: the line for `leakage.jsonl`.
        tensors: "label" (K,), "image" (C, H, W) as recovered and "true_label", "true_image",
            as far as there are any.
    """

    record: LeakageRecord
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def audit_leak(
    leak: GradientLeak,
    plan: AttackPlan,
    place: LeakageRecord,
    *,
    seed: int,
    judge: Judge | None,
) -> list[Finding]:
    """Run one plan on one leak.

    An attack that raises, or whose answer has another form than it must have, costs its own record,
    with the reason; nothing else.

    Args:
        leak: what the server sees, with the plan's knowledge.
        plan: the attacks.
        place: a record with round, client, attack and what else is known beforehand.
        seed: of the run; the attack's generator derives from it and the place.
        judge: holds the truth; None leaves the scores empty.

    Returns:
        One finding for each example, or a single one where the attack gives no rows.
    """
    truth = None
    if judge is not None and place.client is not None:
        truth = judge.truth(place.client, place.round)
    classes = None if truth is None else truth.labels.shape[1]
    client, attack = str(place.client), str(place.attack)
    generator = torch_generator(seed, "attack", place.round, client, attack)
    started = time.perf_counter()
    try:
        labels = plan.label(leak, generator=generator)
        _check_answer(labels, LabelRecovery, leak, labels=(classes,), features=(None,))
        _check_mass(labels.mass, classes)
    except Exception as error:  # a third party's attack may raise anything
        _log_failure(plan.label_name, error)
        labels = LabelRecovery(Status.FAILED, f"{type(error).__name__}: {error}")
    label_seconds = time.perf_counter() - started
    image: Reconstruction | None = None
    image_seconds = None
    if plan.image is not None:
        started = time.perf_counter()
        try:
            image = plan.image(leak, labels, generator=generator)
            _check_answer(image, Reconstruction, leak, images=leak.input_shape)
        except Exception as error:  # likewise
            _log_failure(plan.image_name, error)
            image = Reconstruction(Status.FAILED, f"{type(error).__name__}: {error}")
        image_seconds = time.perf_counter() - started
    shared = dataclasses.replace(
        place,
        batch_size=leak.batch_size or labels.batch_size,
        label_status=labels.status.value,
        label_reason=labels.reason,
        label_seconds=label_seconds,
        image_status=None if image is None else image.status.value,
        image_reason=None if image is None else image.reason,
        image_seconds=image_seconds,
    )
    if labels.mass is not None and judge is not None and place.client is not None:
        true_mass = judge.label_mass(place.client, place.round)
        scored: dict[str, Any] = dict(score_mass(labels.mass, true_mass, judge.baseline.mass))
        shared = dataclasses.replace(shared, **scored)
    rows = 0 if labels.labels is None else len(labels.labels)
    if image is not None and image.images is not None:
        rows = max(rows, len(image.images))
    if not rows:
        return [Finding(shared)]
    pairs = list(range(rows))
    if truth is not None:
        pairs = pair_examples(labels, truth, rows, None if image is None else image.images)
    scores: list[dict[str, Any]] = [{} for _ in pairs]
    if truth is not None and labels.labels is not None:
        scores = score_labels(labels, truth, pairs, leak)
    findings = []
    for row, example in enumerate(pairs):
        fields = {"example": example} | _answer(labels, image, row) | scores[row]
        tensors = _tensors(labels, image, row)
        if truth is not None and judge is not None:
            fields |= _compare(image, row, truth, example, judge.baseline)
            tensors["true_label"] = truth.labels[example]
            tensors["true_image"] = truth.images[example]
        findings.append(Finding(dataclasses.replace(shared, **fields), tensors))
    return sorted(findings, key=lambda finding: finding.record.example or 0)


def _log_failure(name: str | None, error: Exception) -> None:
    logger.warning("attack %s raised %s: %s", name, type(error).__name__, error)
    logger.debug("attack %s", name, exc_info=error)


def _check_answer(
    answer: object, kind: type, leak: GradientLeak, **tensors: tuple[int | None, ...]
) -> None:
    """Raise unless an attack's answer has the form that `attacks.types` asks for.

    Args:
        answer: what the attack returned.
        kind: the type that it must have.
        leak: what was attacked; its batch size is the number of rows, where it is known.
        tensors: attribute -> the shape of one row, None where any size will do.
    """
    if not isinstance(answer, kind):
        raise TypeError(f"the answer must be a {kind.__name__}, found {type(answer).__name__}")
    rows = leak.batch_size
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


def _answer(labels: LabelRecovery, image: Reconstruction | None, row: int) -> dict[str, Any]:
    """Return the fields of a record that an attack's answer fills for one row."""
    fields = _verdict("label", labels, row)
    fields["gradient_scale"] = labels.gradient_scale
    if labels.certificate is not None:
        fields["label_certificate"] = float(labels.certificate[row])
    found = labels.augmentations[row] if labels.augmentations else None
    if found is not None:
        fields["augmentation"] = found.type
        fields["smoothing"] = found.smoothing
        fields["mixing"] = found.mixing
    if image is not None:
        fields |= _verdict("image", image, row)
        if image.images is not None and image.images[row].isfinite().all():
            fields["image_low"], fields["image_high"] = image.pixel_range
    return fields


def _verdict(kind: str, answer: LabelRecovery | Reconstruction, row: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if answer.statuses:
        fields[f"{kind}_status"] = answer.statuses[row].value
    if answer.reasons:
        fields[f"{kind}_reason"] = answer.reasons[row]
    if answer.residual is not None:
        fields[f"{kind}_residual"] = float(answer.residual[row])
    return fields


def _tensors(labels: LabelRecovery, image: Reconstruction | None, row: int) -> dict[str, Tensor]:
    tensors = {}
    if labels.labels is not None:
        tensors["label"] = labels.labels[row]
    if image is not None and image.images is not None:
        tensors["image"] = image.images[row]
    return tensors


def _compare(
    image: Reconstruction | None, row: int, truth: Truth, example: int, baseline: Baseline
) -> dict[str, Any]:
    """Return the image's scores and the guesses of an attacker who saw no update."""
    fields: dict[str, Any] = {"baseline_top1": int(truth.labels[example].argmax()) == baseline.top1}
    if image is not None:
        fields |= baseline.scores(truth.images[example], truth.labels[example])
        if image.images is not None and image.pixel_range == (0.0, 1.0):
            fields |= score_image(image.images[row], truth.images[example])
    return fields
