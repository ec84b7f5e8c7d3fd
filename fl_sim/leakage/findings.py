"""Write down what an attack's answer leaks of each example, beside the truth."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from attacks import (
    ExampleImage,
    ExampleLabel,
    GradientLeak,
    LabelRecovery,
    Reconstruction,
    Status,
)
from fl_sim.leakage.attack_update import Answer
from fl_sim.leakage.image_scores import is_identified, psnr_db, score_image
from fl_sim.leakage.judge import Baseline, Truth, score_labels
from fl_sim.leakage.records import LeakageRecord
from fl_sim.leakage.true_features import TrueFeatures

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Finding:
    """A record, and what it is about.

    Args:
        record: the line for `leakage.jsonl`.
        tensors: "label" (K,), "image" (C, H, W) and "candidates" (N, K) as recovered, "true_label"
            and "true_image", and "originals" (N, C, H, W) that the latter was mixed from, as far as
            there are any; of attacks that count "mass" (K,), with
            "true_mass" and "guessed_mass" beside it.
    """

    record: LeakageRecord
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def write_findings(
    leak: GradientLeak,
    answer: Answer,
    place: LeakageRecord,
    *,
    truth: Truth | None = None,
    baseline: Baseline | None = None,
    pairs: Sequence[int | None] = (),
    true_features: TrueFeatures | None = None,
    masses: Mapping[str, Tensor] | None = None,
) -> list[Finding]:
    """Write an answer's records, scored where the truth is at hand.

    An image that can't be scored is FAILED, with the reason.

    Args:
        leak: what was attacked.
        answer: of a plan's attacks.
        place: a record with round, client, attack and what else is known beforehand.
        truth: what the client trained on; None leaves the scores empty.
        baseline: what an attacker guesses who sees no update; given with the truth.
        pairs: for each of the answer's rows, the true example that it is compared with, None for a
            row that is compared with none; given with the truth.
        true_features: of the leak's model; None traces it anew.
        masses: the class mass of an answer without rows, and what it is compared with.

    Returns:
        One finding for each row, ordered by example, those without one last; a single one where
        the answer has no rows.
    """
    shared = _shared_fields(answer, leak, place, truth)
    if not answer.rows:
        return [Finding(shared, masses or {})]
    if truth is None or baseline is None:
        return [_finding(shared, answer, row, {"example": row}) for row in range(answer.rows)]
    scores: list[dict[str, Any]] = [{} for _ in pairs]
    if answer.labels.examples:
        scores = score_labels(answer.labels, truth, pairs, true_features or TrueFeatures(leak))
    findings = []
    for row, example in enumerate(pairs):
        if example is None:
            findings.append(_finding(shared, answer, row, {}))
            continue
        fields = {"example": example} | scores[row]
        fields |= _compare(answer.image, row, truth, example, baseline)
        found = answer.labels.examples[row].label if answer.labels.examples else None
        label = truth.label_near(example, found)
        true = {"true_label": label, "true_image": truth.images[example]}
        if truth.originals is not None:
            true["originals"] = truth.originals[example]
        findings.append(_finding(shared, answer, row, fields, true))
    return sorted(findings, key=_by_example)


def with_class_name(finding: Finding, names: Sequence[str]) -> Finding:
    """Say in a finding's record what the classes of its label are called, of K names."""
    record = finding.record
    classes = (record.label_class, record.label_second_class)
    name = " + ".join(names[k] for k in classes if k is not None) or None
    return dataclasses.replace(finding, record=dataclasses.replace(record, label_class_name=name))


def _shared_fields(
    answer: Answer, leak: GradientLeak, place: LeakageRecord, truth: Truth | None
) -> LeakageRecord:
    """Return the record of a place with what an answer says of all its examples."""
    labels, image = answer.labels, answer.image
    return dataclasses.replace(
        place,
        batch_size=leak.batch_size or labels.batch_size,
        examples=leak.steps.distinct if truth is None else len(truth.labels),
        label_status=labels.status.value,
        label_reason=labels.reason,
        label_seconds=answer.label_seconds,
        image_status=None if image is None else image.status.value,
        image_reason=None if image is None else image.reason,
        image_seconds=answer.image_seconds,
        image_method=None if image is None else image.method,
        gradient_evaluations=None if image is None else image.gradient_evaluations,
    )


def _by_example(finding: Finding) -> tuple[bool, int]:
    example = finding.record.example
    return example is None, example or 0


def _finding(
    shared: LeakageRecord,
    answer: Answer,
    row: int,
    fields: Mapping[str, Any],
    true: Mapping[str, Tensor] | None = None,
) -> Finding:
    values = {**_answer(answer.labels, answer.image, row), **fields}
    record = dataclasses.replace(shared, **values)
    return Finding(record, _tensors(answer.labels, answer.image, row) | dict(true or {}))


def _answer(labels: LabelRecovery, image: Reconstruction | None, row: int) -> dict[str, Any]:
    """Return the fields of a record that an attack's answer fills for one row."""
    fields: dict[str, Any] = {"gradient_scale": labels.gradient_scale}
    if labels.examples:
        label = labels.examples[row]
        fields |= _verdict("label", label)
        fields["label_bar"] = label.label_bar
        fields["label_certificate"] = label.certificate
        if label.candidates is not None and len(label.candidates) > 1:
            fields["label_candidates"] = len(label.candidates)
        if (found := label.augmentation) is not None:
            fields["augmentation"] = found.type
            fields["smoothing"] = found.smoothing
            fields["mixing"] = found.mixing
        fields |= _classes(label)
    if image is not None and image.examples:
        fields |= _verdict("image", image.examples[row])
        fields["image_bar"] = image.examples[row].error
        spread = image.examples[row].spread
        if spread is not None:
            fields["image_spread"] = float(spread.square().mean().sqrt())
        if image.examples[row].image is not None:
            fields["image_low"], fields["image_high"] = image.pixel_range
    return fields


def _classes(answer: ExampleLabel) -> dict[str, Any]:
    """Return the largest class of a recovered label, and of a mixed one the second largest, too."""
    if answer.label is None:
        return {}
    largest = answer.label.argsort(descending=True, stable=True).tolist()
    is_mixed = answer.augmentation is not None and answer.augmentation.mixing is not None
    return {"label_class": largest[0], "label_second_class": largest[1] if is_mixed else None}


def _verdict(kind: str, example: ExampleLabel | ExampleImage) -> dict[str, Any]:
    return {
        f"{kind}_status": example.status.value,
        f"{kind}_reason": example.reason,
        f"{kind}_certainty": None if example.certainty is None else example.certainty.value,
        f"{kind}_residual": example.residual,
    }


def _tensors(labels: LabelRecovery, image: Reconstruction | None, row: int) -> dict[str, Tensor]:
    label = labels.examples[row] if labels.examples else None
    pixels = image.examples[row].image if image is not None and image.examples else None
    tensors = {
        "label": None if label is None else label.label,
        "candidates": None if label is None else label.candidates,
        "image": pixels,
    }
    return {name: part for name, part in tensors.items() if part is not None}


def _compare(
    image: Reconstruction | None, row: int, truth: Truth, example: int, baseline: Baseline
) -> dict[str, Any]:
    """Return the image's scores and the guesses of an attacker who saw no update."""
    fields: dict[str, Any] = {"baseline_top1": int(truth.labels[example].argmax()) == baseline.top1}
    if image is None:
        return fields
    try:
        true_image = truth.images[example].double()
        fields |= baseline.scores(true_image, truth.labels[example])
        found = image.examples[row].image if image.examples else None
        if found is not None and image.pixel_range == (0.0, 1.0):
            fields |= score_image(found, true_image)
            fields["identified"] = is_identified(found, truth.images, example, baseline.others)
            if truth.originals is not None:
                originals = truth.originals[example].double()
                fields["psnr_original_db"] = max(psnr_db(found, one) for one in originals)
    except Exception as error:  # of a truth that a third party tells
        logger.warning("scoring an image raised %s: %s", type(error).__name__, error)
        fields["image_status"] = Status.FAILED.value
        fields["image_reason"] = f"scoring raised {type(error).__name__}: {error}"
    return fields
