"""An own app's updates stay as captures, and attacked offline give the records of the audit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from fl_sim import LeakageAudit, LocalGrid, LocalTraining
from fl_sim.capture.attack import OfflineAttack
from fl_sim.capture.file import LARGEST_CLIENT, read_capture
from fl_sim.capture.folder import find_captures
from fl_sim.errors import UserError
from fl_sim.leakage.records import read_lines
from fl_sim.report import build_report
from fl_sim.scenario import Attack

pytestmark = pytest.mark.usefixtures("moves_generators", "here", "tiny_file")
SHAPE, CLASSES = (1, 4, 4), 4
IMAGES = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1))
LABELS = 0.9 * one_hot(torch.tensor([2, 0, 1]), CLASSES).float() + 0.1 / CLASSES
NAMES = ["ant", "bee", "cat", "dog"]
NODES = {1: LARGEST_CLIENT, 2: 13358812475219836729, 3: 7}
"""Of a `LocalGrid` -> as a SuperLink numbers nodes: 64 bits, drawn at random."""
RecordsOf = Callable[[Path], str]
FlSim = Callable[..., Any]


def own_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, CLASSES))


class Shifted(nn.Module):
    """Two linear layers with batch norm, whose input is shifted by what isn't in its state."""

    def __init__(self, shift: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift), persistent=False)
        self.norm = nn.BatchNorm1d(16)
        self.body, self.head = nn.Linear(16, 32), nn.Linear(32, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K)."""
        logits: Tensor = self.head(self.body(self.norm(images.flatten(1) - self.shift)).relu())
        return logits


def app(model: nn.Module, changes: Callable[[int, dict[str, Any]], None] | None = None) -> Any:
    """Return clients with an image each, who send parameters, or what `changes` makes of them."""
    client = ClientApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        received = message.content.array_records["arrays"].to_torch_state_dict()
        model.load_state_dict(received, strict=False)
        model.eval().zero_grad()
        cross_entropy(model(IMAGES[i : i + 1]), LABELS[i : i + 1]).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        sent = {name: Array(p.detach().numpy().copy()) for name, p in model.named_parameters()}
        content = {"arrays": ArrayRecord(sent), "metrics": MetricRecord({"num-examples": 1})}
        if changes is not None:
            changes(i, content)
        return Message(RecordDict(content), reply_to=message)

    return client


class Averages(FedAvg):
    """FedAvg that takes what a malicious client sends for nothing."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Leave client 1 out."""
        others = [reply for reply in replies if reply.metadata.src_node_id != 1]
        return super().aggregate_train(server_round, others)


def audited(
    out: Path,
    *,
    build: Callable[[], nn.Module] = own_model,
    changes: Any = None,
    rounds: int = 2,
    **options: Any,
) -> Path:
    model = build()
    told = {
        "model": model,
        "attacks": [("soft-label", "analytic")],
        "training": LocalTraining(lr=0.1, batch_size=1),
        "input_shape": SHAPE,
        "capture": f"{HERE}:{build.__name__}",
    }
    strategy = LeakageAudit(Averages(fraction_evaluate=0.0), out=out, **told | options)
    arrays = ArrayRecord({n: Array(p.detach().numpy()) for n, p in model.named_parameters()})
    strategy.start(LocalGrid(app(build(), changes), 3), arrays, num_rounds=rounds)
    return out


def attack_again(source: Path, out: Path, label: str = "soft-label") -> Path:
    attack = Attack(label=label, image="analytic" if label == "soft-label" else None)
    return OfflineAttack.of(source, attack, trusts=True).work_off(out, jobs=1)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this module be found by the name that captures hold."""
    monkeypatch.syspath_prepend(Path(__file__).parent)


def pretrained() -> nn.Module:
    """Return a network with statistics of its own, which don't travel."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Shifted()
        model.norm.running_mean += torch.rand(16)
    return model


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (own_model, {}),
        (own_model, {"clients": NODES}),
        (own_model, {"class_names": NAMES, "defenses": "label smoothing", "seed": 5}),
        (own_model, {"training": LocalTraining(lr=0.1, batch_size=None)}),
        (Shifted, {}),
        (pretrained, {"capture": "test_own_app:Shifted"}),
    ],
    ids=["plain", "nodes", "told", "batch-size-unknown", "own-buffer", "own-statistics"],
)
def test_an_own_app_attacked_again_gives_its_records(
    build: Any, options: dict[str, Any], records_of: RecordsOf, tmp_path: Path
) -> None:
    audited(tmp_path / "audit", build=build, **options)
    assert len(find_captures(tmp_path / "audit")) == 6
    attack_again(tmp_path / "audit", tmp_path / "again")
    assert records_of(tmp_path / "again") == records_of(tmp_path / "audit")
    records = read_lines(tmp_path / "again" / "leakage.jsonl")
    assert {r["label_status"] for r in records} == {"RECOVERED"}
    assert {r["client"] for r in records} == {*options.get("clients", {1: 1, 2: 2, 3: 3}).values()}
    page = build_report(tmp_path / "again").read_text(encoding="utf-8")
    assert ("cat" in page) == ("class_names" in options)


def test_from_the_command_line(fl_sim: FlSim, records_of: RecordsOf, tmp_path: Path) -> None:
    audited(tmp_path / "audit")
    attack = ("attack", tmp_path / "audit", "--label=soft-label", "--image=analytic")
    done = fl_sim(*attack, "--out", tmp_path / "again")
    assert done.status == 2
    assert "names 'test_own_app:own_model', code outside fl-sim" in done.stderr
    assert not (tmp_path / "again").exists()
    done = fl_sim("attack", tmp_path / "audit", "--trust", "--out", tmp_path / "again")
    assert done.stderr.startswith("fl-sim: --label must name a label attack")
    done = fl_sim(*attack, "--trust", "--out", tmp_path / "again")
    assert done.status == 0, done.stderr
    assert records_of(tmp_path / "again") == records_of(tmp_path / "audit")
    assert "6 images and 6 labels of 6 examples" in done.stdout


def test_captures_may_be_all_that_an_audit_leaves(records_of: RecordsOf, tmp_path: Path) -> None:
    audited(tmp_path / "later", attacks=[])
    audited(tmp_path / "audit")
    attack_again(tmp_path / "later", tmp_path / "again")
    assert records_of(tmp_path / "again") == records_of(tmp_path / "audit")


def test_the_capture_changes_neither_records_nor_the_model(
    records_of: RecordsOf, tmp_path: Path
) -> None:
    audited(tmp_path / "with")
    audited(tmp_path / "without", capture=None)
    assert records_of(tmp_path / "with") == records_of(tmp_path / "without")
    assert not (tmp_path / "without" / "captures").exists()


def test_a_round_that_was_not_completed_is_left_out(tmp_path: Path) -> None:
    out = audited(tmp_path / "audit")
    lines = (out / "rounds.jsonl").read_text().splitlines()
    (out / "rounds.jsonl").write_text(lines[0] + "\n")
    assert len(OfflineAttack.of(out, Attack(), trusts=True).files) == 3


def replacing(name: str, array: np.ndarray[Any, Any]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["arrays"] = ArrayRecord({**content["arrays"], name: Array(array)})

    return change


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], None], bool, str]] = {
    "complex numbers": (
        replacing("1.bias", np.zeros(32, np.complex64)),
        False,
        "it must hold real numbers, found torch.complex64 in 'sent/1.bias'",
    ),
    "unsigned numbers": (replacing("x", np.zeros(2, np.uint16)), False, "found torch.uint16 in"),
    "no name": (replacing("", np.zeros(2)), False, "it names a tensor 'sent/', which is neither"),
    "endless steps": (
        lambda content: content.update(metrics=MetricRecord({"num-steps": 10**9})),
        False,
        "local_steps: must be at most 1000000, found 1000000000",
    ),
    "another shape": (replacing("1.bias", np.zeros(5, np.float32)), True, "doesn't fit the model"),
    "NaN": (replacing("1.bias", np.full(32, np.nan, np.float32)), True, ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_client_sends_costs_its_own_capture_at_most(
    name: str, records_of: RecordsOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, is_kept, sentence = HOSTILE[name]
    caplog.set_level("WARNING")
    out = audited(
        tmp_path / "audit",
        changes=lambda i, content: change(content) if i == 0 else None,
        attacks=["idlg"],
        rounds=1,
    )
    assert sentence in caplog.text
    assert ("client 1's update of round 1 isn't captured" in caplog.text) == (not is_kept)
    attack_again(out, tmp_path / "again", "idlg")
    inline = records_of(out).splitlines()
    assert len(inline) == 3
    assert records_of(tmp_path / "again").splitlines() == inline[0 if is_kept else 1 :]


def narrower() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 31), nn.ReLU(), nn.Linear(31, CLASSES))


def with_tanh() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, CLASSES))


def with_dropout(p: float = 0.5) -> nn.Module:
    layers = (nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Dropout(p))
    return nn.Sequential(*layers, nn.Linear(32, CLASSES))


def frozen() -> nn.Module:
    model = own_model()
    model[1].requires_grad_(False)
    return model


def shifted_elsewhere() -> nn.Module:
    return Shifted(0.6)


HERE = "test_own_app"
MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "another width": (
        {"capture": f"{HERE}:narrower"},
        "capture .* must build the network that model is, found that its '1.weight' is float32 of "
        r"\(31, 16\), and in model float32 of \(32, 16\)",
    ),
    "another activation": ({"capture": f"{HERE}:with_tanh"}, "to other logits in eval mode"),
    "frozen layers": (
        {"capture": f"{HERE}:frozen"},
        r"its '1\.weight' is float32 of \(32, 16\), frozen, and in model float32 of \(32, 16\)$",
    ),
    "another buffer": (
        {"model": Shifted(), "capture": f"{HERE}:shifted_elsewhere"},
        "to other logits in eval mode",
    ),
    "more layers": (
        {"model": Shifted()},
        r"its 'norm.weight' is not there, and in model float32 of \(16,\)",
    ),
    "another dropout": (
        {
            "model": with_dropout(0.1),
            "capture": f"{HERE}:with_dropout",
            "training": LocalTraining(lr=0.1, batch_size=4, mode="train"),
        },
        "to other logits in train mode",
    ),
    "double precision": ({"model": own_model().double()}, "and in model float64 of"),
    "no such module": ({"capture": "nowhere:build"}, "model 'nowhere:build' can't be imported"),
    "no such function": ({"capture": f"{HERE}:nothing"}, "can't be imported: .*no attribute"),
    "no such name": ({"capture": "build"}, "unknown model 'build'"),
    "no module": ({"capture": f"{HERE}:NAMES"}, "must be a class or a function"),
    "a script": ({"capture": "__main__:build"}, "capture must name what another process can impo"),
    "a function": ({"capture": own_model}, "capture must be the name of a model, .* found <func"),
    "without out": ({"out": None, "log": print}, "capture belongs to out, .* found none"),
    "with sums": ({"secure_aggregation": 2}, "which secure_aggregation hides: leave one out"),
    "taken over": ({"take_over": print}, "capture takes updates itself: leave take_over out"),
    "one number for two": ({"clients": {1: 0, 2: 0, 3: 1}}, "clients must have a number each"),
    "another size": ({"input_shape": (1, 5, 5)}, r"capture can't be compared .* \(1, 1, 5, 5\)"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_one_sentence_before_the_first_round(
    name: str, tmp_path: Path
) -> None:
    options, sentence = MISFITS[name]
    with pytest.raises((TypeError, ValueError), match=sentence) as caught:
        audited(**{"out": tmp_path / "audit"} | options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "audit").exists()


def test_a_listed_network_is_named_as_in_a_scenario(records_of: RecordsOf, tmp_path: Path) -> None:
    audited(tmp_path / "audit", build=mlp, capture="mlp")
    attack_again(tmp_path / "audit", tmp_path / "again")
    assert records_of(tmp_path / "again") == records_of(tmp_path / "audit")


def mlp() -> nn.Module:
    from fl_sim.capture.make import recipe_of

    return recipe_of("mlp", options={}, classes=CLASSES, input_shape=SHAPE, bias=True).build()


def setting(key: str, to: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda described: described["scenario"].__setitem__(key, to)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (setting("seed", "0"), "seed: must be a whole number, found '0'"),
        (setting("class_names", 5), "class_names: must be a list"),
        (setting("class_names", ["one", "two"]), r"with 4 classes, and its run's .* names 2"),
        (setting("defenses", ["none"]), "defenses: must be a string"),
        (lambda described: described.__setitem__("scenario", 3), "isn't a run's description"),
        (lambda described: described.__setitem__("kind", ["audit"]), r"scenario\.json: "),
    ],
    ids=["seed", "names", "few names", "defenses", "no table", "kind"],
)
def test_a_description_that_somebody_changed_is_one_sentence(
    change: Any, sentence: str, fl_sim: FlSim, tmp_path: Path
) -> None:
    out = audited(tmp_path / "audit", class_names=NAMES, rounds=1)
    described = json.loads((out / "scenario.json").read_text())
    change(described)
    (out / "scenario.json").write_text(json.dumps(described))
    done = fl_sim("attack", out, "--label=soft-label", "--trust", "--out", tmp_path / "again")
    assert done.status == 2
    assert re.match(f"fl-sim: .*{sentence}.*\n$", done.stderr)
    assert not (tmp_path / "again").exists()


def test_nodes_have_numbers_of_64_bits(tmp_path: Path) -> None:
    out = audited(tmp_path / "audit", clients=NODES, rounds=1)
    found = {read_capture(path).update.client for path in find_captures(out)}
    assert found == set(NODES.values())


def test_a_number_that_no_node_has_costs_its_captures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = audited(tmp_path / "audit", clients={1: -1, 2: 2**64, 3: 3}, rounds=1)
    assert "client -1's update of round 1 isn't captured: it isn't valid: client" in caplog.text
    assert len(find_captures(out)) == 1
    with pytest.raises(UserError, match="doesn't exist"):
        find_captures(tmp_path / "elsewhere")
