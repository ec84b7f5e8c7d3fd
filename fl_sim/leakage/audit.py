"""Attack one client's update, compare the answer with the truth, and write down what it leaks."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import torch

from attacks import GradientLeak, Status
from fl_sim.leakage.attack_update import Answer, attack_update
from fl_sim.leakage.findings import Finding, write_findings
from fl_sim.leakage.judge import Judge, Truth, pair_examples, score_mass
from fl_sim.leakage.plan import AttackPlan
from fl_sim.leakage.records import LeakageRecord
from fl_sim.leakage.true_features import TrueFeatures
from fl_sim.seeds import seed_for, seeded_layers, torch_generator

logger = logging.getLogger(__name__)
_PLAIN = {bool, int, float, str, type(None)}


def audit_leak(
    leak: GradientLeak,
    plan: AttackPlan,
    place: LeakageRecord,
    *,
    seed: int,
    judge: Judge | None,
    true_features: TrueFeatures | None = None,
) -> list[Finding]:
    """Run one plan on one leak: attack it, pair rows with examples, score.

    An attack that raises, or whose answer has another form than it must have, costs its own record,
    with the reason; nothing else. So does a judge that raises, and whatever goes wrong in scoring.
    Layers of the leak's model that draw, in eval mode too, are seeded as well.

    Args:
        leak: what the server sees, with the plan's knowledge.
        plan: the attacks.
        place: a record with round, client, attack and what else is known beforehand.
        seed: of the run; the attack's generator derives from it and the place.
        judge: holds the truth; None leaves the scores empty.
        true_features: of the leak's model, where several leaks share it; None traces it anew.

    Returns:
        One finding for each example, or a single one where the attack gives no rows.
    """
    client, attack = " ".join(map(str, place.senders)) or "None", str(place.attack)
    layers = seed_for(seed, "audit layers", place.round, client, attack)
    parameter = next(leak.model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    with seeded_layers(layers, device):
        generator = torch_generator(seed, "attack", place.round, client, attack)
        return _audited(leak, plan, place, generator, judge, true_features)


def _audited(
    leak: GradientLeak,
    plan: AttackPlan,
    place: LeakageRecord,
    generator: torch.Generator,
    judge: Judge | None,
    true_features: TrueFeatures | None,
) -> list[Finding]:
    if not place.senders:
        judge = None
    truth, problem = None, None
    try:
        with _named("the judge"):
            truth = None if judge is None else _truth(judge, place)
    except _Unscored as error:
        problem = str(error)
    classes = None if truth is None else truth.labels.shape[1]
    answer = attack_update(leak, plan, generator=generator, classes=classes)
    if problem is None or answer.is_empty:
        try:
            return _findings(leak, answer, place, judge, truth, true_features)
        except _Unscored as error:
            problem = str(error)
    return [Finding(_unscored(leak, answer, place, problem))]


class _Unscored(Exception):
    """One sentence on what went wrong between an attack's answer and its records."""


@contextlib.contextmanager
def _named(step: str) -> Iterator[None]:
    """Name the step in which something was raised: a third party's judge may raise anything."""
    try:
        yield
    except Exception as error:
        sentence = f"{step} raised {type(error).__name__}: {error}"
        logger.warning("an update isn't scored: %s", sentence)
        logger.debug("an update isn't scored", exc_info=error)
        raise _Unscored(sentence) from error


def _truth(judge: Judge, place: LeakageRecord) -> Truth:
    return Truth.joined([_checked(judge.truth(sender, place.round)) for sender in place.senders])


def _checked(truth: object) -> Truth:
    if not isinstance(truth, Truth):
        raise TypeError(f"the truth must be a Truth, found {type(truth).__name__}")
    images, labels = truth.images, truth.labels
    if images.ndim != 4 or labels.ndim != 2 or len(images) != len(labels):
        raise ValueError(
            "the truth must hold images (B, C, H, W) and labels (B, K), found "
            f"{tuple(images.shape)} and {tuple(labels.shape)}"
        )
    return truth


def _findings(
    leak: GradientLeak,
    answer: Answer,
    place: LeakageRecord,
    judge: Judge | None,
    truth: Truth | None,
    true_features: TrueFeatures | None,
) -> list[Finding]:
    """Pair and score an answer, and make sure that its records can be written.

    Raises:
        _Unscored: something was raised on the way.
    """
    labels, image = answer.labels, answer.image
    baseline, pairs = None, []
    mass: dict[str, Any] = {}
    masses = {} if labels.mass is None else {"mass": labels.mass}
    if judge is not None and truth is not None:
        with _named("the judge"):
            baseline = judge.baseline
        with _named("pairing"):
            images = None if image is None else image.images
            pairs = pair_examples(labels, truth, answer.rows, images)
    if labels.mass is not None and judge is not None and baseline is not None:
        with _named("the judge"):
            true_mass, *others = (judge.label_mass(who, place.round) for who in place.senders)
            for mass_of_other in others:
                true_mass = true_mass + mass_of_other
        with _named("scoring"):
            mass = dict(score_mass(labels.mass, true_mass, baseline.mass))
            guess = baseline.mass / baseline.mass.sum() * true_mass.sum()
            masses |= {"true_mass": true_mass, "guessed_mass": guess}
    with _named("scoring"):
        place = dataclasses.replace(place, **mass) if mass else place
        findings = write_findings(
            leak,
            answer,
            place,
            truth=truth,
            baseline=baseline,
            pairs=pairs,
            true_features=true_features,
            masses=masses,
        )
        for finding in findings:
            _check_writable(finding.record)
    return findings


def _check_writable(record: LeakageRecord) -> None:
    """Raise unless a record can be written as JSON; an attack may answer anything."""
    if any(type(value) not in _PLAIN for value in vars(record).values()):
        record.to_json()


def _unscored(
    leak: GradientLeak, answer: Answer, place: LeakageRecord, problem: str | None
) -> LeakageRecord:
    """Return the record of an answer that is lost, with what it cost."""
    has_image = answer.image is not None
    return dataclasses.replace(
        place,
        batch_size=leak.batch_size,
        examples=leak.steps.distinct,
        label_status=Status.FAILED.value,
        label_reason=problem,
        label_seconds=answer.label_seconds,
        image_status=Status.FAILED.value if has_image else None,
        image_reason=problem if has_image else None,
        image_seconds=answer.image_seconds,
    )
