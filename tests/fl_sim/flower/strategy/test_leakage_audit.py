"""The audit attacks what a client sent, costs nothing but records, and changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import nn

from attacks import GradientLeak, LabelRecovery, Status
from attacks.facts import Fact, GaussianMechanism, LabelSmoothing, Mixup
from fl_sim.federation import Federation
from fl_sim.flower import client
from fl_sim.flower.client import to_arrays
from fl_sim.flower.engines.local import LocalGrid
from fl_sim.flower.run import run
from fl_sim.flower.strategy import LeakageAudit, ReplyGuard
from fl_sim.flower.wire import LocalTraining, wire_tensors
from fl_sim.leakage.findings import Finding
from fl_sim.leakage.plan import AttackPlan
from fl_sim.leakage.records import LeakageRecord
from fl_sim.scenario import Scenario

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
        '{label="idlg", rounds=[1, 3]}, {label="idlg", rounds=[]}]'
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
    told: list[tuple[Fact, ...]] = []

    def listens(leak: GradientLeak, *, generator: torch.Generator) -> LabelRecovery:
        told.append(leak.knowledge)
        return LabelRecovery(Status.NOT_CONVERGED, "for a test")

    known = (LabelSmoothing(0.2),)
    plans = [AttackPlan("a", listens), AttackPlan("b", listens, knowledge=known)]  # type: ignore[arg-type]
    Standalone(tiny, plans).round()
    assert told == [(), known] * 3


def test_what_no_attack_of_a_plan_uses_is_in_the_record(tiny: Tiny) -> None:
    """A third party's fact, and one that the attack has no use for."""
    known = (LabelSmoothing(0.2), Rounded(), GaussianMechanism(1.0, 0.1))
    plans = [
        AttackPlan.by_name("soft-label", knowledge=known),
        AttackPlan.by_name("idlg", "analytic", knowledge=known),
        AttackPlan.by_name("idlg"),
    ]
    records = Standalone(tiny, plans).round()
    unused = {record.attack: record.unused_facts for record in records}
    assert unused == {0: "Rounded", 1: "LabelSmoothing, Rounded", 2: None}


def test_facts_that_contradict_each_other_are_an_error_before_any_round() -> None:
    with pytest.raises(ValueError, match="found Mixup twice"):
        AttackPlan.by_name("soft-label", knowledge=(Mixup(), Mixup()))


@dataclasses.dataclass(frozen=True)
class Rounded(Fact):
    """A third party's."""


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


def test_epochs_are_as_many_steps_as_the_reported_examples_make(tiny: Tiny) -> None:
    def reports(examples: Any) -> Callable[[RecordDict], RecordDict]:
        def change(content: RecordDict) -> RecordDict:
            metrics = {**content.metric_records["metrics"], "num-examples": examples}
            kept = {key: value for key, value in metrics.items() if value is not None}
            return RecordDict({**content, "metrics": MetricRecord(kept)})

        return change

    training = LocalTraining(lr=0.05, batch_size=4, local_epochs=2)
    for examples, reason in (
        (10, "the update sums 6 local steps"),
        (4.0, "the update sums 2 local steps"),
        (0, "metric 'num-examples' must be a number of examples, found 0"),
        (2.5, "metric 'num-examples' must be a number of examples, found 2.5"),
        (None, "local_epochs tell the steps only with batch_size and the examples of a client"),
    ):
        standalone = Standalone(tiny, ["soft-label"], training=training)
        record = standalone.round(change=reports(examples))[0]
        assert record.label_status == "NOT_APPLICABLE"
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


def test_a_model_that_is_wrapped_in_the_audit_only_is_named(tiny: Tiny) -> None:
    model = nn.Sequential(nn.Identity(), Federation.of(tiny()).build_model())
    standalone = Standalone(tiny, ["soft-label"], model=model)
    reasons = {record.label_reason for record in standalone.round()}
    assert len(reasons) == 1
    assert "array '2.weight' would be the model's '1.2.weight' with '1.' before it" in str(reasons)
    assert standalone.base.aggregated == 1


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


@pytest.mark.e2e
def test_an_audit_in_an_app_of_ones_own_loads_neither_scenarios_nor_data() -> None:
    program = """
import sys
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from fl_sim import LeakageAudit, LocalTraining

TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4))
findings = []
audit = LeakageAudit(
    FedAvg(),
    model=model,
    attacks=[("soft-label", "analytic")],
    training=LocalTraining(lr=0.1, batch_size=1),
    input_shape=(1, 4, 4),
    log=lambda server_round, found: findings.extend(found),
)
content = lambda: RecordDict({"arrays": ArrayRecord(model.state_dict())})
message = Message(content(), dst_node_id=7, message_type="train")
audit.base.configure_train = lambda *_: [message]
audit.base.aggregate_train = lambda *_: (None, None)
audit.configure_train(1, content().array_records["arrays"], ConfigRecord(), None)
loss = torch.nn.functional.cross_entropy(model(torch.rand(1, 1, 4, 4)), torch.tensor([2]))
loss.backward()
torch.optim.SGD(model.parameters(), lr=0.1).step()
message.metadata.__dict__["_message_id"] = "1"
reply = Message(content(), reply_to=message)
reply.metadata.__dict__["_src_node_id"] = 7
audit.aggregate_train(1, [reply])
(finding,) = findings
assert finding.record.label_status == "RECOVERED", finding.record
forbidden = (
    "fl_sim.data", "fl_sim.federation", "fl_sim.scenario",
    "mlxtend", "pydantic", "skimage", "torchvision",
)
sys.exit(" ".join(name for name in sorted(sys.modules) if name.startswith(forbidden)) or None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
