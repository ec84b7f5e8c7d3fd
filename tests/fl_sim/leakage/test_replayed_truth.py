"""Leaks of a simulated client, scored against the truth that its seeds replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks import ExampleImage, ExampleLabel, LabelRecovery, Reconstruction, Status
from fl_sim.federation import Federation
from fl_sim.flower.client import train_locally
from fl_sim.flower.wire import LocalTraining, gradient_leak, wire_tensors
from fl_sim.leakage.audit import audit_leak
from fl_sim.leakage.findings import Finding
from fl_sim.leakage.judge import Truth
from fl_sim.leakage.plan import AttackPlan
from fl_sim.leakage.records import LeakageRecord
from fl_sim.replay_judge import ReplayJudge
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]
FORMULA = ("third_party:Formula", "third_party:FormulaImage")


class Audited:
    """One leak of client 1, from training on two examples, and the judge."""

    def __init__(self, tiny: Tiny, *overrides: str) -> None:
        scenario = tiny(*overrides)
        self.federation = Federation.of(scenario)
        model = self.federation.build_model()
        sent, *_ = train_locally(scenario, 1, 2, wire_tensors(model, "eval"))
        size = scenario.client.batch_size
        training = LocalTraining(lr=scenario.client.lr, batch_size=size)
        self.leak = gradient_leak(model, sent, training, input_shape=(1, 4, 4))
        self.judge = ReplayJudge.of(self.federation)

    def findings(self, plan: AttackPlan, **options: Any) -> list[Finding]:
        """Run a plan."""
        place = LeakageRecord(round=2, client=1, attack=0, label_attack=plan.label_name)
        return audit_leak(self.leak, plan, place, seed=0, **{"judge": self.judge} | options)


def test_a_recovered_example_is_scored_against_the_replayed_truth(tiny: Tiny) -> None:
    audited = Audited(tiny)
    [finding] = audited.findings(AttackPlan.by_name(*FORMULA))
    record, truth = finding.record, audited.judge.truth(1, 2)
    assert (record.round, record.client, record.example, record.batch_size) == (2, 1, 0, 1)
    assert record.label_status == record.image_status == "RECOVERED"
    assert record.label_linf is not None
    assert record.label_linf < 1e-2
    assert record.psnr_db is not None
    assert record.baseline_psnr_db is not None
    assert record.psnr_db > 50 > record.baseline_psnr_db
    assert torch.equal(finding.tensors["true_image"], truth.images[0])
    assert torch.equal(finding.tensors["true_label"], truth.labels[0])
    assert finding.tensors["image"].shape == (1, 4, 4)


def test_without_a_judge_there_are_no_scores(tiny: Tiny) -> None:
    [finding] = Audited(tiny).findings(AttackPlan.by_name(*FORMULA), judge=None)
    record = finding.record
    assert (record.label_status, record.image_status) == ("RECOVERED", "RECOVERED")
    scores = ("label_linf", "label_top1", "psnr_db", "baseline_psnr_db", "true_augmentation")
    assert [getattr(record, name) for name in scores] == [None] * 5
    assert finding.tensors.keys() == {"label", "image"}


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def labelled(rows: int, classes: int) -> LabelRecovery:
    guess = ExampleLabel(Status.NOT_CONVERGED, "for a test", zeros(classes))
    return LabelRecovery.of([guess] * rows)


def shown(rows: int, *shape: int) -> Reconstruction:
    guess = ExampleImage(Status.NOT_CONVERGED, "for a test", zeros(*shape))
    return Reconstruction.of([guess] * rows)


LABEL_ANSWERS: dict[str, tuple[Any, str]] = {
    "nothing": (None, "TypeError: the answer must be a LabelRecovery, found NoneType"),
    "a tensor": (zeros(2, 4), "TypeError: the answer must be a LabelRecovery, found Tensor"),
    "too few rows": (labelled(1, 4), "it must answer on 2 examples or none, found 1"),
    "too many rows": (labelled(3, 4), "it must answer on 2 examples or none, found 3"),
    "other classes": (labelled(2, 5), "labels must have 4 classes, found 5"),
    "a mass of other classes": (
        LabelRecovery(Status.NOT_CONVERGED, "for a test", mass=torch.ones(5)),
        "ValueError: mass must have 4 classes, found 5",
    ),
}
IMAGE_ANSWERS: dict[str, tuple[Any, str]] = {
    "nothing": (None, "TypeError: the answer must be a Reconstruction, found NoneType"),
    "labels": (
        labelled(2, 4),
        "TypeError: the answer must be a Reconstruction, found LabelRecovery",
    ),
    "other pixels": (
        shown(2, 1, 4, 5),
        "ValueError: images must have the shape (1, 4, 4), found (1, 4, 5)",
    ),
    "too few": (shown(1, 1, 4, 4), "ValueError: it must answer on 2 examples or none, found 1"),
}


@pytest.mark.parametrize("kind", LABEL_ANSWERS)
def test_an_answer_of_another_form_costs_one_record(tiny: Tiny, kind: str) -> None:
    answer, reason = LABEL_ANSWERS[kind]
    plan = AttackPlan("mine", lambda leak, *, generator: answer)  # type: ignore[arg-type]
    [finding] = Audited(tiny, "client.batch_size=2").findings(plan)
    assert finding.record.label_status == "FAILED"
    assert reason in (finding.record.label_reason or "")
    assert finding.record.example is None


@pytest.mark.parametrize("kind", IMAGE_ANSWERS)
def test_an_image_of_another_form_leaves_the_label(tiny: Tiny, kind: str) -> None:
    answer, reason = IMAGE_ANSWERS[kind]
    plan = AttackPlan(
        "mine",
        lambda leak, *, generator: labelled(2, 4),  # type: ignore[arg-type]
        "mine",
        lambda leak, labels, *, generator: answer,  # type: ignore[arg-type]
    )
    for finding in Audited(tiny, "client.batch_size=2").findings(plan):
        assert finding.record.label_status == "NOT_CONVERGED"
        assert finding.record.image_status == "FAILED"
        assert finding.record.image_reason == reason
        assert finding.record.psnr_db is None


@pytest.mark.parametrize("name", ["label-mass", "llg"])
def test_a_mass_is_scored_against_the_labels_of_all_local_steps(tiny: Tiny, name: str) -> None:
    scenario = tiny("client.local_steps=3", "client.batch_size=2")
    federation = Federation.of(scenario)
    model = federation.build_model()
    sent, *_ = train_locally(scenario, 1, 2, wire_tensors(model, "eval"))
    training = LocalTraining(lr=scenario.client.lr, batch_size=2, local_steps=3)
    leak = gradient_leak(model, sent, training, input_shape=(1, 4, 4))
    judge = ReplayJudge.of(federation)
    batches = [federation.training_batch(1, 2, step).labels for step in range(3)]
    assert torch.equal(judge.label_mass(1, 2), torch.cat(batches).double().sum(dim=0))
    place = LeakageRecord(round=2, client=1, attack=0, label_attack=name)
    [finding] = audit_leak(leak, AttackPlan.by_name(name), place, seed=0, judge=judge)
    record = finding.record
    assert record.example is None
    assert record.label_status == "NOT_IDENTIFIABLE"
    assert record.mass_tv is not None
    assert record.mass_tv_chance is not None
    assert record.mass_irec is not None
    assert 0 <= record.mass_tv <= 1
    assert 0 <= record.mass_irec <= 1
    [blind] = audit_leak(leak, AttackPlan.by_name(name), place, seed=0, judge=None)
    assert blind.record.mass_tv is None


EPOCHS = ("client.local_epochs=2", "client.batch_size=8", "data.examples_per_client=12")


def judge_of(tiny: Tiny, *overrides: str) -> tuple[ReplayJudge, list[Tensor], list[Tensor]]:
    """Return the judge, and the images and labels of client 1's steps in round 2."""
    federation = Federation.of(tiny(*overrides))
    steps = range(federation.local_steps(1))
    batches = [federation.training_batch(1, 2, step) for step in steps]
    images, labels = [b.images for b in batches], [b.labels for b in batches]
    return ReplayJudge.of(federation), images, labels


def test_the_truth_of_epochs_holds_each_example_once(tiny: Tiny) -> None:
    judge, images, labels = judge_of(tiny, *EPOCHS, 'defense=[{name="label-smoothing"}]')
    assert [len(part) for part in images] == [8, 4, 8, 4]
    truth = judge.truth(1, 2)
    assert torch.equal(truth.images, torch.cat(images[:2]))
    assert torch.equal(truth.labels, torch.cat(labels[:2]))
    assert truth.all_labels is None
    mass = judge.label_mass(1, 2)
    assert torch.equal(mass, torch.stack([part.double().sum(dim=0) for part in labels]).sum(dim=0))
    # Twelve examples, twice; float32 labels.
    assert float(mass.sum()) == pytest.approx(24, abs=1e-5)


def test_labels_that_are_drawn_anew_are_all_in_the_truth(tiny: Tiny) -> None:
    judge, images, labels = judge_of(
        tiny, *EPOCHS, 'defense=[{name="label-smoothing", smoothing=[0.1, 0.5]}]'
    )
    truth = judge.truth(1, 2)
    assert truth.images.shape == (12, 1, 4, 4)
    assert truth.all_labels is not None
    second = torch.cat(images[2:])
    for image, own in zip(truth.images, truth.all_labels, strict=True):
        [[again]] = (second == image).flatten(1).all(dim=1).nonzero().T.tolist()
        assert torch.equal(own[1], torch.cat(labels[2:])[again])
        assert not torch.equal(own[0], own[1])
    assert torch.equal(truth.labels, torch.cat(labels[:2]))


def test_what_is_mixed_anew_is_another_example(tiny: Tiny) -> None:
    judge, images, labels = judge_of(tiny, *EPOCHS, 'defense=[{name="mixup"}]')
    truth = judge.truth(1, 2)
    assert torch.equal(truth.images, torch.cat(images))
    assert torch.equal(truth.labels, torch.cat(labels))
    assert len(truth.labels) == 24


def test_steps_that_draw_an_example_again_show_it_once(tiny: Tiny) -> None:
    judge, images, _ = judge_of(tiny, "client.local_steps=5", "client.batch_size=8")
    truth, drawn = judge.truth(1, 2), torch.cat(images)
    assert len(truth.images) == len(torch.unique(drawn, dim=0)) < len(drawn)


def test_examples_that_are_alike_count_each(tiny: Tiny) -> None:
    """Two of the same image in one batch are two; in the next epoch they are the same two."""
    federation = Federation.of(tiny(*EPOCHS))
    one = federation.dataset.images[:1].expand_as(federation.dataset.images)
    alike = replace(federation, dataset=replace(federation.dataset, images=one))
    assert len(ReplayJudge.of(alike).truth(1, 2).images) == 12


@pytest.mark.parametrize("rows", [1, 5])
def test_of_steps_that_draw_anew_any_number_may_be_found(tiny: Tiny, rows: int) -> None:
    federation = Federation.of(tiny("client.local_steps=3", "client.batch_size=2"))
    judge, model = ReplayJudge.of(federation), federation.build_model()
    training = LocalTraining(lr=0.05, batch_size=2, local_steps=3, schedule="steps")
    leak = gradient_leak(model, wire_tensors(model, "eval"), training, input_shape=(1, 4, 4))
    plan = AttackPlan("mine", lambda leak, *, generator: labelled(rows, 4))  # type: ignore[arg-type]
    place = LeakageRecord(round=2, client=1, attack=0, label_attack="mine")
    records = [f.record for f in audit_leak(leak, plan, place, seed=0, judge=judge)]
    assert [record.label_status for record in records] == ["NOT_CONVERGED"] * rows
    assert {(r.batch_size, r.examples) for r in records} == {(2, len(judge.truth(1, 2).labels))}


@pytest.mark.parametrize("of", ["nearest", "mean"])
def test_a_label_that_varies_is_compared_with_the_nearest(tiny: Tiny, of: str) -> None:
    overrides = (*EPOCHS, 'defense=[{name="label-smoothing", smoothing=[0.1, 0.5]}]')
    federation = Federation.of(tiny(*overrides))
    judge = ReplayJudge.of(federation)
    truth = judge.truth(1, 2)
    assert truth.all_labels is not None
    rows = [own[1] if of == "nearest" else own.mean(dim=0) for own in truth.all_labels]
    found = [ExampleLabel(Status.RECOVERED, label=row.double()) for row in rows]
    answer = LabelRecovery.of(found)
    model = federation.build_model()
    training = LocalTraining(lr=0.05, batch_size=8, local_epochs=2).of_client(examples=12)
    leak = gradient_leak(model, wire_tensors(model, "eval"), training, input_shape=(1, 4, 4))
    place = LeakageRecord(round=2, client=1, attack=0, label_attack="mine")
    plan = AttackPlan("mine", lambda leak, *, generator: answer)  # type: ignore[arg-type]
    findings = audit_leak(leak, plan, place, seed=0, judge=judge)
    records = [finding.record for finding in findings]
    assert [record.example for record in records] == list(range(12))
    assert {(r.batch_size, r.examples, r.true_labels) for r in records} == {(8, 12, 2)}
    errors = [record.label_linf for record in records]
    assert all(error is not None for error in errors)
    if of == "nearest":
        assert max(error or 0 for error in errors) < 1e-7  # float32 labels
        assert all(
            torch.equal(f.tensors["true_label"].double(), f.tensors["label"]) for f in findings
        )
    else:
        assert sum((error or 0) > 1e-2 for error in errors) > 8


@pytest.mark.parametrize(
    "all_labels",
    [(torch.eye(4),), (torch.eye(4)[:, :3],) * 2, (torch.ones(4),) * 2, (torch.eye(4)[:0],) * 2],
)
def test_labels_of_other_examples_are_no_truth(all_labels: tuple[Tensor, ...]) -> None:
    with pytest.raises(ValueError, match=r"all_labels must hold labels \(N, K\) for each of 2"):
        Truth(torch.zeros(2, 1, 4, 4), torch.eye(4)[:2], all_labels)


def test_the_originals_of_a_mixture_are_replayed(tiny: Tiny) -> None:
    changes = {"client.batch_size": 2, "defense": [{"name": "mixup"}]}
    federation = Federation.of(tiny().with_changes(changes))
    truth = ReplayJudge.of(federation).truth(1, 1)
    assert truth.originals is not None
    assert len(truth.originals) == len(truth.images) == 2
    for image, label, pair in zip(truth.images, truth.labels, truth.originals, strict=True):
        # The blend is s·a + (1−s)·b: s from the label or by least squares, and then the image.
        a, b = pair.double()
        s = float(((image - b) * (a - b)).sum() / (a - b).square().sum())
        assert 0 <= s <= 1
        assert torch.allclose(image.double(), s * a + (1 - s) * b, atol=1e-6)
        assert label.max() >= max(s, 1 - s) - 1e-6
    assert ReplayJudge.of(Federation.of(tiny())).truth(1, 1).originals is None
