"""A judge that raises costs a record; rows and true examples needn't be equally many."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import ExampleImage, ExampleLabel, GradientLeak, LabelRecovery, Reconstruction, Status
from fl_sim.leakage import audit, findings
from fl_sim.leakage.attack_update import attack_update
from fl_sim.leakage.audit import audit_leak
from fl_sim.leakage.findings import Finding, write_findings
from fl_sim.leakage.judge import Baseline, Truth, pair_examples
from fl_sim.leakage.plan import AttackPlan
from fl_sim.leakage.reasons import reasons
from fl_sim.leakage.records import LeakageRecord
from fl_sim.leakage.summary import summarize

CLASSES, SHAPE = 4, (1, 4, 4)


def images(examples: int) -> Tensor:
    return torch.rand(examples, *SHAPE, generator=torch.Generator().manual_seed(0)).double()


def hard(*labels: int) -> Tensor:
    return torch.eye(CLASSES, dtype=torch.float64)[list(labels)]


def network() -> nn.Module:
    with torch.random.fork_rng():
        return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))


class Told:
    """A judge of one's own: it tells `truth`, or raises it."""

    def __init__(self, truth: Any, mass: Any = None, baseline: Any = None) -> None:
        self._truth = truth
        self._mass = mass
        guess = Baseline(torch.full(SHAPE, 0.5), 0, torch.full((CLASSES,), 1 / CLASSES))
        self._baseline = guess if baseline is None else baseline

    @property
    def baseline(self) -> Baseline:
        """Tell it."""
        return _told(self._baseline)

    def truth(self, client: int, server_round: int) -> Truth:
        """Tell it."""
        return _told(self._truth)

    def label_mass(self, client: int, server_round: int) -> Tensor:
        """Tell it."""
        return _told(self._mass)


def _told(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


def audited(
    labels: LabelRecovery, image: Reconstruction | None, judge: Any, size: int | None = None
) -> list[Finding]:
    """Audit an attack that answers this."""
    model = network()
    plan = AttackPlan(
        "mine",
        lambda leak, *, generator: labels,  # type: ignore[arg-type]
        None if image is None else "mine",
        None if image is None else lambda leak, labels, *, generator: image,  # type: ignore[arg-type, return-value]
    )
    place = LeakageRecord(round=1, client=2, attack=0, label_attack="mine")
    return audit_leak(GradientLeak(model, {}, size, SHAPE), plan, place, seed=0, judge=judge)


def recovered(labels: Tensor) -> LabelRecovery:
    return LabelRecovery.of([ExampleLabel(Status.RECOVERED, label=row) for row in labels.double()])


def shown(pixels: Tensor) -> Reconstruction:
    return Reconstruction.of([ExampleImage(Status.RECOVERED, image=i) for i in pixels.double()])


NO_TRUTH = "the truth must hold images (B, C, H, W) and labels (B, K), found"
JUDGES: dict[str, tuple[Told, str]] = {
    "raises": (Told(KeyError(3)), "the judge raised KeyError: 3"),
    "tells nothing": (
        Told(None),
        "the judge raised TypeError: the truth must be a Truth, found NoneType",
    ),
    "tells fewer images": (
        Told(Truth(images(1), hard(0, 1))),
        f"the judge raised ValueError: {NO_TRUTH} (1, 1, 4, 4) and (2, 4)",
    ),
    "tells class numbers": (
        Told(Truth(images(2), torch.tensor([0, 1]))),
        f"the judge raised ValueError: {NO_TRUTH} (2, 1, 4, 4) and (2,)",
    ),
    "has no baseline": (
        Told(Truth(images(2), hard(0, 1)), baseline=OSError("gone")),
        "the judge raised OSError: gone",
    ),
    "tells other pixels": (
        Told(Truth(torch.rand(2, 1, 3, 3, generator=torch.Generator()), hard(0, 1))),
        "pairing raised RuntimeError: ",
    ),
}


@pytest.mark.parametrize("kind", JUDGES)
def test_a_judge_that_fails_costs_the_record(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    judge, reason = JUDGES[kind]
    with caplog.at_level(logging.WARNING, "fl_sim"):
        [finding] = audited(recovered(hard(0, 1)), shown(images(2)), judge, 2)
    record = finding.record
    assert (record.label_status, record.image_status) == ("FAILED", "FAILED")
    assert record.label_reason == record.image_reason
    assert (record.label_reason or "").startswith(reason)
    assert (record.round, record.client, record.attack, record.example) == (1, 2, 0, None)
    assert (record.batch_size, record.label_attack) == (2, "mine")
    assert record.label_seconds is not None
    assert record.image_seconds is not None
    assert reason in caplog.text


def test_an_answer_without_rows_needs_no_judge() -> None:
    nothing = LabelRecovery(Status.NOT_APPLICABLE, "it sums 3 steps")
    [finding] = audited(nothing, None, Told(KeyError(3)), 2)
    assert finding.record.label_reason == "it sums 3 steps"


def test_a_mass_that_cannot_be_scored_costs_the_record() -> None:
    truth = Truth(images(2), hard(0, 1))
    mass = LabelRecovery(Status.NOT_IDENTIFIABLE, "it counts", mass=hard(0, 1).sum(dim=0))
    for told, reason in (
        (KeyError("labels"), "the judge raised KeyError: 'labels'"),
        (torch.zeros(7), "scoring raised RuntimeError: "),
        ("none", "scoring raised AttributeError: "),
    ):
        [finding] = audited(mass, None, Told(truth, told), 2)
        assert finding.record.label_status == "FAILED"
        assert (finding.record.label_reason or "").startswith(reason)
    [finding] = audited(mass, None, Told(truth, hard(0, 1).sum(dim=0)), 2)
    assert finding.record.mass_tv == 0


@pytest.mark.parametrize(
    ("module", "name", "step"),
    [(audit, "pair_examples", "pairing"), (findings, "score_labels", "scoring")],
)
def test_scoring_that_raises_costs_the_record(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, step: str
) -> None:
    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(module, name, broken)
    judge = Told(Truth(images(2), hard(0, 1)))
    [finding] = audited(recovered(hard(0, 1)), None, judge, 2)
    assert finding.record.label_status == "FAILED"
    assert finding.record.image_status is None
    assert finding.record.label_reason == f"{step} raised ZeroDivisionError: division by zero"


def test_an_image_that_cannot_be_scored_leaves_the_label(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = images(2)

    def broken(image: Tensor, true_image: Tensor) -> dict[str, Any]:
        if torch.equal(image, pixels[0]):
            raise ZeroDivisionError("division by zero")
        return {"psnr_db": 7.0}

    monkeypatch.setattr(findings, "score_image", broken)
    judge = Told(Truth(pixels, hard(0, 1)))
    first, second = [f.record for f in audited(recovered(hard(0, 1)), shown(pixels), judge, 2)]
    assert (first.label_status, first.image_status) == ("RECOVERED", "FAILED")
    assert first.image_reason == "scoring raised ZeroDivisionError: division by zero"
    assert "ZeroDivisionError" in caplog.text
    assert (first.label_linf, first.psnr_db) == (0, None)
    assert (second.image_status, second.psnr_db) == ("RECOVERED", 7)


def test_an_answer_that_cannot_be_written_down_costs_the_record() -> None:
    answer = recovered(hard(0))
    object.__setattr__(answer, "gradient_scale", 1j)  # as no constructor would take it
    [finding] = audited(answer, None, None, 1)
    assert finding.record.label_status == "FAILED"
    assert (finding.record.label_reason or "").startswith("scoring raised ")
    finding.record.to_json()


def test_rows_beyond_the_true_examples_have_no_partner() -> None:
    truth = Truth(images(2), hard(1, 3))
    rows = [0.5 * hard(0) + 0.5 * hard(2), hard(3), 0.9 * hard(1) + 0.1 * hard(0)]
    found = audited(recovered(torch.cat(rows)), None, Told(truth), 3)
    assert [finding.record.example for finding in found] == [0, 1, None]
    scores = [finding.record.label_linf for finding in found]
    assert scores == [pytest.approx(0.1), 0, None]
    extra = found[2]
    assert extra.record.label_status == "RECOVERED"
    assert extra.record.true_augmentation is extra.record.baseline_top1 is None
    assert torch.equal(extra.tensors["label"], rows[0][0])
    assert extra.tensors.keys() == {"label"}
    # Three rows, of which none stands for its whole batch.
    (summary,) = summarize([vars(finding.record) for finding in found])
    [label] = [leak for leak in summary.leaks if leak.kind == "label"]
    assert (summary.examples, label.vouched.count, label.false) == (3, 3, 1)
    assert reasons([vars(finding.record) for finding in found]) == []


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_single_row_is_compared_with_the_example_that_it_fits(which: int) -> None:
    truth = Truth(images(3), hard(1, 3, 0))
    answer = recovered(truth.labels[[which]]), shown(truth.images[[which]])
    [finding] = audited(*answer, Told(truth), 1)
    record = finding.record
    assert (record.example, record.label_linf, record.psnr_db) == (which, 0, 200)
    assert torch.equal(finding.tensors["true_image"], truth.images[which])


def test_true_examples_without_a_row_are_not_invented() -> None:
    truth = Truth(images(4), hard(1, 3, 0, 2))
    found = audited(recovered(truth.labels[[3, 0]]), shown(truth.images[[3, 0]]), Told(truth), 2)
    assert [finding.record.example for finding in found] == [0, 3]
    assert {finding.record.psnr_db for finding in found} == {200}


def test_a_truth_without_examples_scores_nothing() -> None:
    [finding] = audited(recovered(hard(0)), None, Told(Truth(images(0), hard())), 1)
    record = finding.record
    assert (record.example, record.label_status, record.label_linf) == (None, "RECOVERED", None)


def test_images_and_labels_of_an_answer_must_be_equally_many() -> None:
    found = audited(recovered(hard(0, 1)), shown(images(3)), Told(Truth(images(2), hard(0, 1))))
    for finding in found:
        assert finding.record.label_linf == 0
        reason = "ValueError: it must answer on 2 examples or none, found 3"
        assert finding.record.image_reason == reason


def test_attack_pair_and_score_stand_on_their_own() -> None:
    model = network()
    truth = Truth(images(1), hard(2))
    loss = nn.functional.cross_entropy(model(truth.images.float()), truth.labels.float())
    names = [name for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    leak = GradientLeak(model, dict(zip(names, gradients, strict=True)), 1, SHAPE)
    answer = attack_update(leak, AttackPlan.by_name("soft-label"), generator=torch.Generator())
    assert (answer.rows, answer.image, answer.image_seconds) == (1, None, None)
    assert answer.label_seconds > 0
    pairs = pair_examples(answer.labels, truth, answer.rows)
    assert pairs == [0]
    place = LeakageRecord(round=1, client=0)
    [blind] = write_findings(leak, answer, place)
    baseline = Told(truth).baseline
    [scored] = write_findings(leak, answer, place, truth=truth, baseline=baseline, pairs=pairs)
    assert blind.record.label_linf is None
    assert scored.record.label_linf is not None
    assert scored.record.label_linf < 1e-2  # what RECOVERED claims


def test_a_mixed_image_is_compared_with_its_originals() -> None:
    originals = images(2)
    truth = Truth(originals.mean(dim=0, keepdim=True), hard(1), originals=(originals,))
    [finding] = audited(recovered(hard(1)), shown(originals[:1]), Told(truth), 1)
    assert finding.record.psnr_original_db == 200
    assert (finding.record.psnr_db or 0) < 50
    assert torch.equal(finding.tensors["originals"], originals)
    [plain] = audited(recovered(hard(1)), shown(images(1)), Told(Truth(images(1), hard(1))), 1)
    assert plain.record.psnr_original_db is None
    assert "originals" not in plain.tensors


@pytest.mark.parametrize("originals", [(), (torch.zeros(2, 1, 3, 3),), (torch.zeros(0, 1, 4, 4),)])
def test_originals_must_be_those_of_the_examples(originals: tuple[Tensor, ...]) -> None:
    with pytest.raises(ValueError, match=r"originals must hold images .* for each of 1"):
        Truth(images(1), hard(1), originals=originals)
