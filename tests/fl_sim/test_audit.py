"""The audit attacks what a client sent, costs nothing but records, and changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from attacks import GradientLeak, Knowledge, LabelRecovery, Reconstruction, Status
from fl_sim import client
from fl_sim.audit import AttackPlan, Finding, ReplayJudge, audit_leak
from fl_sim.client import to_arrays, train_locally
from fl_sim.federation import Federation
from fl_sim.records import LeakageRecord
from fl_sim.scenario import Scenario
from fl_sim.scoring import Baseline
from fl_sim.simulation import LocalGrid, run
from fl_sim.strategy import LeakageAudit, ReplyGuard
from fl_sim.wire import LocalTraining, gradient_leak, wire_tensors

Tiny = Callable[..., Scenario]
OutcomeOf = Callable[[Path], dict[str, str | bytes]]
FORMULA = ("third_party:Formula", "third_party:FormulaImage")


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_the_audit_changes_no_bit_of_the_training(
    tiny: Tiny, outcome_of: OutcomeOf, tmp_path: Path, strategy: str
) -> None:
    """Over three rounds, with ReplyGuard in both."""
    overrides = [f"server.strategy={strategy}", "client.fraction=0.7", "data.clients=5"]
    run(tiny(*overrides, "attack.0.label=third_party:Draws"), tmp_path / "with")
    run(tiny(*overrides, "attack=[]"), tmp_path / "without")
    audited, plain = outcome_of(tmp_path / "with"), outcome_of(tmp_path / "without")
    assert audited["leakage.jsonl"].count("\n") == 3 * 4
    assert not (tmp_path / "without" / "leakage.jsonl").exists()
    names = {"rounds.jsonl", "checkpoint/round-00003.safetensors", "checkpoint/round-00003.json"}
    assert {n: audited[n] for n in names} == {n: plain[n] for n in names}


class Audited:
    """One leak of client 1, from training on two examples, and the judge."""

    def __init__(self, tiny: Tiny, *overrides: str) -> None:
        scenario = tiny(*overrides)
        self.federation = Federation.of(scenario)
        model = self.federation.build_model()
        sent, _ = train_locally(scenario, 1, 2, wire_tensors(model, "eval"))
        size = scenario.client.batch_size
        training = LocalTraining(lr=scenario.client.lr, batch_size=size)
        self.leak = gradient_leak(model, sent, training, input_shape=(1, 4, 4))
        self.judge = ReplayJudge(self.federation, Baseline.of(self.federation))

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


def labelled(labels: Tensor | None = None, **fields: Any) -> LabelRecovery:
    return LabelRecovery(Status.NOT_CONVERGED, "for a test", labels, **fields)


LABEL_ANSWERS: dict[str, tuple[Any, str]] = {
    "nothing": (None, "TypeError: the answer must be a LabelRecovery, found NoneType"),
    "a tensor": (zeros(2, 4), "TypeError: the answer must be a LabelRecovery, found Tensor"),
    "too few rows": (labelled(zeros(1, 4)), "labels must have the shape (2, 4), found (1, 4)"),
    "too many rows": (labelled(zeros(3, 4)), "labels must have the shape (2, 4), found (3, 4)"),
    "other classes": (labelled(zeros(2, 5)), "labels must have the shape (2, 4), found (2, 5)"),
    "one row": (labelled(zeros(4)), "labels must have the shape (2, 4), found (4,)"),
    "features": (
        labelled(zeros(2, 4), features=zeros(1, 9)),
        "features must have the shape (2, None), found (1, 9)",
    ),
    "statuses": (
        labelled(zeros(2, 4), statuses=(Status.RECOVERED,)),
        "statuses must have 2 entries, found 1",
    ),
    "augmentations": (
        labelled(zeros(2, 4), augmentations=(None,) * 3),
        "augmentations must have 2 entries, found 3",
    ),
    "a mass of other classes": (
        labelled(mass=torch.ones(5)),
        "ValueError: mass must have the shape (4,), found (5,)",
    ),
    "a negative mass": (
        labelled(mass=torch.tensor([3.0, -1.0, 0.0, 0.0])),
        "ValueError: mass must be finite, at least 0 and not all 0, found",
    ),
    "lists": (labelled([[0.0] * 4] * 2), "AttributeError: "),  # type: ignore[arg-type]
}
IMAGE_ANSWERS: dict[str, tuple[Any, str]] = {
    "nothing": (None, "TypeError: the answer must be a Reconstruction, found NoneType"),
    "labels": (labelled(), "TypeError: the answer must be a Reconstruction, found LabelRecovery"),
    "other pixels": (
        Reconstruction(Status.NOT_CONVERGED, "for a test", zeros(2, 1, 4, 5)),
        "ValueError: images must have the shape (2, 1, 4, 4), found (2, 1, 4, 5)",
    ),
    "too few": (
        Reconstruction(Status.NOT_CONVERGED, "for a test", zeros(1, 1, 4, 4)),
        "ValueError: images must have the shape (2, 1, 4, 4), found (1, 1, 4, 4)",
    ),
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
        lambda leak, *, generator: labelled(zeros(2, 4)),  # type: ignore[arg-type]
        "mine",
        lambda leak, labels, *, generator: answer,  # type: ignore[arg-type]
    )
    for finding in Audited(tiny, "client.batch_size=2").findings(plan):
        assert finding.record.label_status == "NOT_CONVERGED"
        assert finding.record.image_status == "FAILED"
        assert finding.record.image_reason == reason
        assert finding.record.psnr_db is None


def test_an_attack_that_raises_costs_its_own_record(tiny: Tiny, tmp_path: Path) -> None:
    attacks = (
        'attack=[{label="third_party:Formula"}, '
        '{label="third_party:Raises", image="third_party:FormulaImage"}, '
        '{label="third_party:Formula", image="third_party:RaisesImage"}, '
        '{label="third_party:returns_nothing"}]'
    )
    run(tiny(attacks, "rounds=2"), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "leakage.jsonl").read_text().splitlines()]
    assert [(r["round"], r["client"], r["attack"]) for r in lines] == [
        (server_round, number, attack)
        for server_round in (1, 2)
        for number in range(3)
        for attack in range(4)
    ]
    for first, second, third, fourth in zip(*[iter(lines)] * 4, strict=True):
        assert first["label_status"] == third["label_status"] == "RECOVERED"
        assert second["label_status"] == "FAILED"
        assert second["label_reason"] == "RuntimeError: index 7 is out of bounds"
        assert second["image_status"] == "NOT_APPLICABLE"
        assert third["image_status"] == "FAILED"
        assert third["image_reason"] == "ZeroDivisionError: division by zero"
        assert fourth["label_status"] == "FAILED"


def test_attacks_draw_from_generators_named_by_their_place(tiny: Tiny, tmp_path: Path) -> None:
    guesses = 'attack=[{label="third_party:Draws"}, {label="third_party:Draws"}]'
    run(tiny(guesses, "rounds=2"), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "leakage.jsonl").read_text().splitlines()]
    assert len({line["label_l1"] for line in lines}) == len(lines) == 2 * 3 * 2


def test_an_attack_runs_when_and_on_whom_it_should(tiny: Tiny, tmp_path: Path) -> None:
    attacks = (
        'attack=[{label="idlg", rounds={every=2}, clients=[0, 2]}, '
        '{label="idlg", rounds=[1, 3]}, {label="idlg", rounds=[9]}]'
    )
    run(tiny(attacks, "rounds=4"), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "leakage.jsonl").read_text().splitlines()]
    assert [(r["attack"], r["round"], r["client"]) for r in lines] == [
        *((1, 1, number) for number in range(3)),
        *((0, 2, number) for number in (0, 2)),
        *((1, 3, number) for number in range(3)),
        *((0, 4, number) for number in (0, 2)),
    ]


def test_only_an_aware_attacker_is_told_the_defense(tiny: Tiny) -> None:
    told: list[Knowledge] = []

    def listens(leak: GradientLeak, *, generator: torch.Generator) -> LabelRecovery:
        told.append(leak.knowledge)
        return labelled()

    known = Knowledge(type="label-smoothing", smoothing=0.2)
    plans = [AttackPlan("a", listens), AttackPlan("b", listens, knowledge=known)]  # type: ignore[arg-type]
    Standalone(tiny, plans).round()
    assert told == [Knowledge(), known] * 3


class LegacyFedAvg:
    """As one of `flwr.server.strategy`, which isn't of the message API."""


class Standalone:
    """`LeakageAudit` as in anyone's own ServerApp: no guard, no judge, its log a list."""

    def __init__(self, tiny: Tiny, attacks: list[Any], **options: Any) -> None:
        self.scenario = tiny()
        model = Federation.of(self.scenario).build_model()
        self.arrays = to_arrays(wire_tensors(model, "eval"))
        self.base = Spy()
        self.findings: list[Finding] = []
        self.audit = LeakageAudit(
            self.base,
            attacks=attacks,
            **{
                "model": copy.deepcopy(model),
                "training": LocalTraining(lr=self.scenario.client.lr, batch_size=1),
                "input_shape": (1, 4, 4),
                "log": lambda server_round, findings: self.findings.extend(findings),
            }
            | options,
        )
        self.grid = LocalGrid(client.app, 3, {"scenario": self.scenario.to_json()})

    def round(
        self, server_round: int = 1, change: Callable[[RecordDict], RecordDict | None] | None = None
    ) -> list[LeakageRecord]:
        """Run a round; `change` makes of client 0's reply another, or an error."""
        messages = self.audit.configure_train(
            server_round, self.arrays, ConfigRecord({"server-round": server_round}), self.grid
        )
        replies = list(self.grid.send_and_receive(messages))
        if change is not None:
            replies[0].content = change(replies[0].content) or RecordDict()
        self.base.expected = replies
        self.audit.aggregate_train(server_round, replies)
        return [finding.record for finding in self.findings]


class Spy(FedAvg):
    """Sends each node weights of its own, and checks that replies come as they were."""

    def __init__(self) -> None:
        super().__init__(fraction_evaluate=0.5)
        self.expected: list[Message] = []
        self.aggregated = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Scale all weights by 1 + 1 / node."""
        for node in grid.get_node_ids():
            own = {name: Array(array.numpy() * (1 + 1 / node)) for name, array in arrays.items()}
            content = RecordDict({"arrays": ArrayRecord(own), "config": config})
            yield Message(content, dst_node_id=node, message_type="train")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Compare."""
        received = list(replies)
        assert all(a is b for a, b in zip(received, self.expected, strict=True))
        self.aggregated += 1
        return None, None


def test_a_leak_starts_from_the_weights_that_each_client_was_sent(tiny: Tiny) -> None:
    standalone = Standalone(tiny, [FORMULA])
    records = standalone.round()
    assert [record.label_status for record in records] == ["RECOVERED"] * 3
    assert [record.client for record in records] == [1, 2, 3]  # nodes, when nobody says whose
    federation = Federation.of(standalone.scenario)
    for node, finding in enumerate(standalone.findings, start=1):
        truth = federation.training_batch(node - 1, 1, 0)
        # RECOVERED claims an error below 1e-2 in the label.
        torch.testing.assert_close(
            finding.tensors["label"], truth.labels[0].double(), atol=1e-2, rtol=0
        )


def test_a_log_in_a_file_gets_a_line_for_each_record(tiny: Tiny, tmp_path: Path) -> None:
    standalone = Standalone(tiny, ["idlg"], log=str(tmp_path / "leakage.jsonl"), defenses="none")
    standalone.round(1)
    standalone.round(2)
    lines = (tmp_path / "leakage.jsonl").read_text().splitlines()
    records = [LeakageRecord(**json.loads(line)) for line in lines]
    assert [(record.round, record.client) for record in records] == [
        (server_round, node) for server_round in (1, 2) for node in (1, 2, 3)
    ]


def with_bias(value: Any) -> Callable[[RecordDict], RecordDict]:
    def change(content: RecordDict) -> RecordDict:
        arrays = dict(content.array_records["arrays"]) | {"2.bias": value}
        return RecordDict({"arrays": ArrayRecord(arrays)})

    return change


BROKEN: dict[str, tuple[Callable[[RecordDict], RecordDict | None], str]] = {
    "empty": (lambda content: RecordDict(), "can't be translated"),
    "wrong shape": (with_bias(Array(np.zeros(5))), "array '2.bias' of shape (5,) doesn't fit"),
    "broadcastable": (with_bias(Array(np.zeros(1))), "array '2.bias' of shape (1,) doesn't fit"),
    "integers": (with_bias(Array(np.zeros(4, int))), "can't be translated"),
    "long doubles": (with_bias(Array(np.zeros(4, np.longdouble))), "can't be translated"),
    "no bytes": (with_bias(Array("float32", (4,), "numpy.ndarray", b"")), "can't be translated"),
    "zip": (with_bias(Array("float32", (4,), "numpy.ndarray", b"PK\3\4")), "can't be translated"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_without_a_guard_a_malformed_reply_costs_a_record(tiny: Tiny, kind: str) -> None:
    change, reason = BROKEN[kind]
    standalone = Standalone(tiny, [FORMULA[0]])
    records = standalone.round(change=change)
    assert [r.label_status for r in records] == ["NOT_APPLICABLE", "RECOVERED", "RECOVERED"]
    assert reason in (records[0].label_reason or "")
    assert standalone.base.aggregated == 1


def test_momentum_from_earlier_rounds_is_no_gradient(tiny: Tiny) -> None:
    training = LocalTraining(lr=0.05, momentum=0.9, batch_size=1, fresh_optimizer=False)
    standalone = Standalone(tiny, [FORMULA[0]], training=training)
    assert {record.label_status for record in standalone.round(1)} == {"RECOVERED"}
    later = standalone.round(2)[3:]
    assert {record.label_status for record in later} == {"NOT_APPLICABLE"}
    assert "momentum (0.9) from earlier rounds" in (later[0].label_reason or "")


def test_the_model_that_was_given_stays_as_it_was(tiny: Tiny) -> None:
    standalone = Standalone(tiny, [FORMULA])
    before = copy.deepcopy(standalone.audit.model.state_dict())
    standalone.round()
    after = standalone.audit.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_unknown_attacks_and_options_are_found_at_once() -> None:
    with pytest.raises(ValueError, match="unknown label attack 'soft-lable'; did you mean"):
        AttackPlan.by_name("soft-lable")
    with pytest.raises(ValueError, match="unknown option 'tolerence'; did you mean 'tolerance'"):
        AttackPlan.by_name("soft-label", label_options={"tolerence": 1})
    assert dataclasses.is_dataclass(AttackPlan.by_name("soft-label"))


@pytest.mark.parametrize("name", ["label-mass", "llg"])
def test_a_mass_is_scored_against_the_labels_of_all_local_steps(tiny: Tiny, name: str) -> None:
    scenario = tiny("client.local_steps=3", "client.batch_size=2")
    federation = Federation.of(scenario)
    model = federation.build_model()
    sent, _ = train_locally(scenario, 1, 2, wire_tensors(model, "eval"))
    training = LocalTraining(lr=scenario.client.lr, batch_size=2, local_steps=3)
    leak = gradient_leak(model, sent, training, input_shape=(1, 4, 4))
    judge = ReplayJudge(federation, Baseline.of(federation))
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


def test_steps_that_a_client_reports_count(tiny: Tiny) -> None:
    def reports(steps: Any) -> Callable[[RecordDict], RecordDict]:
        def change(content: RecordDict) -> RecordDict:
            metrics = MetricRecord({**content.metric_records["metrics"], "num-steps": steps})
            return RecordDict({**content, "metrics": metrics})

        return change

    for steps, reason in (
        (3, "the update sums 3 local steps"),
        (1, None),
        (0, "metric 'num-steps' must be a number of steps, found 0"),
        (1.5, "metric 'num-steps' must be a number of steps, found 1.5"),
        (float("nan"), "metric 'num-steps' must be a number of steps, found nan"),
        (1e300, "the update sums 1000000000"),
    ):
        record = Standalone(tiny, ["soft-label"]).round(change=reports(steps))[0]
        if reason is None:
            assert record.label_status == "RECOVERED"
        else:
            assert reason in (record.label_reason or "")


def test_a_guard_that_makes_replies_alike_hides_no_steps(tiny: Tiny) -> None:
    """One client reports its steps, two don't: the strategy sees the metric of none."""
    standalone = Standalone(tiny, ["soft-label"])
    guard = ReplyGuard(standalone.audit)
    arrays, config = standalone.arrays, ConfigRecord({"server-round": 1})
    messages = guard.configure_train(1, arrays, config, standalone.grid)
    replies = list(standalone.grid.send_and_receive(messages))
    metrics = MetricRecord({**replies[0].content.metric_records["metrics"], "num-steps": 3})
    replies[0].content["metrics"] = metrics
    standalone.base.expected = replies
    guard.aggregate_train(1, replies)
    reasons = [finding.record.label_reason for finding in standalone.findings]
    assert "the update sums 3 local steps" in (reasons[0] or "")
    assert reasons[1:] == [None, None]


def test_what_a_reply_holds_besides_the_model_is_left_aside(tiny: Tiny) -> None:
    def more(content: RecordDict) -> RecordDict:
        extra = {"control": ArrayRecord({"c": Array(np.zeros(2))})}
        return RecordDict({**extra, **content})

    record = Standalone(tiny, ["soft-label"]).round(change=more)[0]
    assert record.label_status == "RECOVERED"


def test_a_wrapped_model_is_the_one_inside(tiny: Tiny) -> None:
    model = nn.DataParallel(Federation.of(tiny()).build_model())
    records = Standalone(tiny, [("soft-label", "analytic")], model=model).round()
    assert {(r.label_status, r.image_status) for r in records} == {("RECOVERED", "RECOVERED")}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"attacks": "soft-label"}, "attacks must be a list, as in .* found 'soft-label'"),
        ({"attacks": []}, "attacks must name at least one, found an empty list"),
        ({"training": {"lr": 0.1}}, "training must be a LocalTraining, found dict"),
        ({"model": "resnet"}, "model must be an nn.Module, found str"),
        (
            {"base": LegacyFedAvg()},
            "LeakageAudit wraps a strategy of flwr.serverapp.strategy, .*Leg",
        ),
        ({"base": FedAvg}, "LeakageAudit wraps .* found abc.ABCMeta"),
    ],
)
def test_what_an_audit_cannot_take_is_said_at_once(options: dict[str, Any], sentence: str) -> None:
    values: dict[str, Any] = {
        "base": FedAvg(fraction_evaluate=0.0),
        "model": nn.Flatten(),
        "attacks": ["soft-label"],
        "training": LocalTraining(lr=0.1),
        "input_shape": (1, 4, 4),
        "log": "unused.jsonl",
    } | options
    with pytest.raises((TypeError, ValueError), match=sentence):
        LeakageAudit(values.pop("base"), **values)
