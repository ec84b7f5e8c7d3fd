"""An audit of one's own app leaves a run folder: of one run, with what was asked for, no more."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from fl_sim import Baseline, LeakageAudit, LocalGrid, LocalTraining, Normalization, Truth
from fl_sim.errors import NothingAccepted, UserError
from fl_sim.flower.strategy import ReplyGuard
from fl_sim.leakage.records import read_lines
from fl_sim.report import build_report, headline

pytestmark = pytest.mark.usefixtures("moves_generators")  # FedAvg draws, as in a user's app
SHAPE, CLASSES = (1, 4, 4), 4
IMAGES = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1))
NAMES = ["ant", "bee", "cat", "dog"]


def labels(classes: int = CLASSES) -> Tensor:
    """Return smoothed labels of three clients with an example each."""
    return 0.9 * one_hot(torch.tensor([2, 0, 1]) % classes, classes).float() + 0.1 / classes


def plain(classes: int = CLASSES) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, classes))


def with_batch_norm(classes: int = CLASSES) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = (nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, classes))
        return nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), *head)


class App:
    """An app of one's own: three clients with an image each, who train as they are told."""

    def __init__(
        self,
        *,
        build: Callable[[int], nn.Module] = plain,
        classes: int = CLASSES,
        momentum: float = 0.0,
        normalization: Normalization | None = None,
        failing: bool = False,
    ) -> None:
        self.model, self.labels = build(classes), labels(classes)
        self.training = LocalTraining(
            lr=0.1,
            batch_size=1,
            momentum=momentum,
            mode="train" if build is with_batch_norm else "eval",
        )
        self.normalization = normalization
        client = ClientApp()

        @client.train()
        def train(message: Message, context: Context) -> Message:
            if failing:
                raise RuntimeError("out of battery")
            i, model = int(context.node_config["partition-id"]), build(classes)
            model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
            model.train()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
            images = IMAGES[i : i + 1]
            if normalization is not None:
                images = (images - 0.5) / 0.25
            cross_entropy(model(images), self.labels[i : i + 1]).backward()
            optimizer.step()
            content = {
                "arrays": ArrayRecord(model.state_dict()),
                "metrics": MetricRecord({"num-examples": 1}),
            }
            return Message(RecordDict(content), reply_to=message)

        self.client = client

    def audit(self, out: Path | None, **options: Any) -> LeakageAudit:
        defaults = {
            "model": self.model,
            "attacks": [("soft-label", "analytic"), "llg"],
            "training": self.training,
            "input_shape": SHAPE,
            "normalization": self.normalization,
        }
        return LeakageAudit(FedAvg(fraction_evaluate=0.0), out=out, **defaults | options)

    def run(self, strategy: Any, rounds: int = 2) -> None:
        arrays = ArrayRecord(self.model.state_dict())
        strategy.start(LocalGrid(self.client, 3), arrays, num_rounds=rounds)


class Judge:
    """Tells what the clients of `App` train on."""

    baseline = Baseline.of(IMAGES, torch.tensor([2, 0, 1]), classes=CLASSES)

    def truth(self, client: int, server_round: int) -> Truth:
        """Return a client's only example."""
        return Truth(IMAGES[client - 1 : client], labels()[client - 1 : client])

    def label_mass(self, client: int, server_round: int) -> Tensor:
        """Return the sum of a client's labels."""
        return labels()[client - 1]


class RaisingJudge(Judge):
    """Loses what client 2 trains on."""

    def truth(self, client: int, server_round: int) -> Truth:
        """Return a client's only example, or raise."""
        if client == 2:
            raise FileNotFoundError("the disk of client 2 is gone")
        return super().truth(client, server_round)


def files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def tensors_in(out: Path) -> set[str]:
    found: set[str] = set()
    for path in (out / "images").iterdir():
        with np.load(path) as archive:
            found |= set(archive)
    return found


def shown(out: Path) -> str:
    """Return the page's text, its white space as single blanks."""
    page = build_report(out).read_text(encoding="utf-8")
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_the_folder_describes_the_audit_and_holds_its_lines(tmp_path: Path) -> None:
    out, app = tmp_path / "audit", App(momentum=0.9)
    app.run(app.audit(out, class_names=NAMES, defenses="label smoothing"))
    about = json.loads((out / "scenario.json").read_text())
    assert about["kind"] == "audit"
    assert {"fl-sim", "flwr", "torch"} <= about["versions"].keys()
    scenario = about["scenario"]
    assert scenario["name"] == "audit"
    assert scenario["client"]["momentum"] == 0.9
    assert scenario["model"]["name"] == "Sequential"
    assert scenario["class_names"] == NAMES
    assert [line["label"] for line in scenario["attack"]] == ["soft-label", "llg"]
    rounds = read_lines(out / "rounds.jsonl")
    assert [(r["round"], r["replies"], r["quarantined"]) for r in rounds] == [(1, 3, 0), (2, 3, 0)]
    records = read_lines(out / "leakage.jsonl")
    assert len(records) == 2 * 3 * 2
    vouched = [r for r in records if r["label_attack"] == "soft-label"]
    assert {r["label_status"] for r in vouched} == {"RECOVERED"}
    assert [r["label_class"] for r in vouched] == [2, 0, 1] * 2
    assert [r["label_class_name"] for r in vouched] == ["cat", "ant", "bee"] * 2
    assert {r["label_linf"] for r in records} == {None}


def test_labels_stay_and_images_only_when_asked_for(tmp_path: Path) -> None:
    app = App()
    for keep, expected in ((False, 0), (2, 2 * 2), (True, 2 * 3)):
        out = tmp_path / str(keep)
        app.run(app.audit(out, keep_images=keep))
        assert len(list((out / "images").glob("*-e0.npz"))) == 2 * 3
        images = sum("image" in np.load(path) for path in (out / "images").glob("*-e0.npz"))
        assert images == expected
        assert tensors_in(out) == {"label", "candidates", "mass", *(["image"] if expected else [])}


def test_images_of_the_truth_stay_with_the_recovered_ones_only(tmp_path: Path) -> None:
    app = App()
    app.run(app.audit(tmp_path / "a", judge=Judge()))
    labels = {*("label", "candidates", "true_label", "mass", "true_mass", "guessed_mass")}
    assert tensors_in(tmp_path / "a") == labels
    app.run(app.audit(tmp_path / "b", judge=Judge(), keep_images=True))
    assert tensors_in(tmp_path / "b") == {*labels, "image", "true_image"}
    with np.load(tmp_path / "b" / "images" / "r0001-c0003-a0-e0.npz") as arrays:
        np.testing.assert_allclose(arrays["image"], arrays["true_image"], atol=1e-4)


def test_without_a_judge_the_page_says_what_is_vouched_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="flwr")
    out, app = tmp_path / "audit", App()
    app.run(ReplyGuard(app.audit(out, class_names=NAMES, keep_images=True)))
    sentence = (
        "The strongest of 2 attacks, soft-label + analytic (unaware), vouches for 6 images and 6 "
        "labels of 6 examples. No truth was given to compare them with."
    )
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count(sentence) == 1
    assert f"`fl-sim report {out}` makes a page of this audit" in messages
    page = shown(out)
    assert sentence in page
    assert "3 2 2 2 bee × 2" in page  # client, examples, labels, images, classes
    assert "vouched for: cat" in page
    assert "False accepts" not in page
    assert "majority-class guess" not in page
    assert "right class" not in page
    assert "<svg" in (out / "report.html").read_text()


def test_with_a_judge_everything_is_scored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="flwr")
    out, app = tmp_path / "audit", App()
    app.run(app.audit(out, judge=Judge(), keep_images=True))
    records = read_lines(out / "leakage.jsonl")
    assert all(r["label_top1"] for r in records if r["attack"] == 0)
    assert all(r["psnr_db"] > 50 for r in records if r["attack"] == 0)
    assert all(r["mass_tv"] < 0.1 for r in records if r["attack"] == 1)
    page = shown(out)
    assert "the soft label of 6 of 6 examples, as the judge knows" in page
    assert "as the attacker knows, 6 vouched for" in page
    assert headline(out).replace("\xa0", " ") in page
    assert headline(out) in [record.getMessage() for record in caplog.records]


def test_a_judge_that_raises_costs_its_records(tmp_path: Path) -> None:
    out, app = tmp_path / "audit", App()
    app.run(app.audit(out, judge=RaisingJudge()))
    records = read_lines(out / "leakage.jsonl")
    failed = [r for r in records if r["label_status"] == "FAILED"]
    assert {r["client"] for r in failed} == {2}
    sentence = "the judge raised FileNotFoundError: the disk of client 2 is gone"
    assert {r["label_reason"] for r in failed} == {sentence}
    assert len(records) - len(failed) == 2 * 2 * 2
    assert [line["replies"] for line in read_lines(out / "rounds.jsonl")] == [3, 3]
    assert sentence in shown(out)


@pytest.mark.parametrize("second", ["another audit", "the same audit"])
def test_a_run_never_adds_to_another(tmp_path: Path, second: str) -> None:
    out, app = tmp_path / "audit", App()
    audit = app.audit(out)
    app.run(audit)
    before = {name: (out / name).read_bytes() for name in files(out)}
    if second == "the same audit":
        with pytest.raises(UserError, match=r"out .*audit holds round 1 already: a second run"):
            app.run(audit)
    else:
        with pytest.raises(
            UserError,
            match=r"out must be a new or an empty folder, and .*audit "
            "holds another run: name another, or remove it",
        ):
            app.audit(out)
    assert {name: (out / name).read_bytes() for name in files(out)} == before


def test_a_folder_that_another_run_takes_meanwhile_is_found_before_clients_train(
    tmp_path: Path,
) -> None:
    app = App()
    first, second = app.audit(tmp_path / "audit"), app.audit(tmp_path / "audit")
    app.run(first)
    before = (tmp_path / "audit" / "leakage.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds another run"):
        app.run(second)
    assert (tmp_path / "audit" / "leakage.jsonl").read_bytes() == before


def test_an_app_that_never_starts_leaves_nothing(tmp_path: Path) -> None:
    App().audit(tmp_path / "audit").end_run()
    assert not (tmp_path / "audit").exists()


def test_a_folder_or_log_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    app = App()
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(UserError, match=r"new or an empty folder, and .* holds 'thesis.tex': name"):
        app.audit(tmp_path)
    with pytest.raises(
        UserError, match=r"new or an empty folder, and .*thesis.tex is a file: name"
    ):
        app.audit(tmp_path / "thesis.tex")
    with pytest.raises(UserError, match=r"log must be a new file, and .*tex holds another run"):
        app.audit(None, log=tmp_path / "thesis.tex")
    with pytest.raises(UserError, match=r"log must be a file, found the folder .*: a folder is"):
        app.audit(None, log=str(tmp_path))
    with pytest.raises(UserError, match=r"out .*x can't be written: Not a directory"):
        app.run(app.audit(tmp_path / "thesis.tex" / "x"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"class_names": NAMES[:3]}, "class_names must be 4, one for .* found 3: ant, bee, cat"),
        ({"class_names": "abcd"}, "class_names must be a list of strings, found 'abcd'"),
        ({"class_names": [1, 2, 3, 4]}, r"class_names must be a list of strings, found \[1, 2"),
        (
            {"class_names": NAMES, "input_shape": (1, 5, 5)},
            r"class_names can't be compared with a model that \(1, 1, 5, 5\) can't go through",
        ),
        ({"keep_images": -1}, "keep_images must be at least 0, found -1"),
        ({"keep_images": 2.5}, r"keep_images must be a whole number or True, found 2\.5"),
        ({"out": None, "log": print, "keep_images": 3}, "keep_images belongs to out, found 3 with"),
        ({"out": None}, "out or log must be given, found neither"),
        ({"judge": Truth(IMAGES, labels())}, r"judge must have baseline, .* found Truth without b"),
        ({"judge": object()}, r"judge must have baseline, truth\(\) .* found object without basel"),
    ],
)
def test_options_that_do_not_fit_are_named(
    tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        App().audit(**{"out": tmp_path / "audit"} | options)


def test_names_need_no_global_draw(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), plain())
    audit = App().audit(tmp_path / "audit", model=model, class_names=NAMES)
    assert audit.class_names == NAMES


@pytest.mark.parametrize(
    ("app", "reason"),
    [
        ({"build": with_batch_norm}, "(BatchNorm2d) ran in train mode, which the server can't"),
        ({"classes": 2}, "2 classes give no more equations than unknowns"),
        (
            {
                "build": with_batch_norm,
                "classes": 2,
                "momentum": 0.9,
                "normalization": Normalization((0.5,), (0.25,)),
            },
            "2 classes give no more equations than unknowns",
        ),
    ],
    ids=["batch norm", "two classes", "everything"],
)
def test_where_attacks_do_not_apply_the_records_say_why(
    tmp_path: Path, app: dict[str, Any], reason: str
) -> None:
    out, own = tmp_path / "audit", App(**app)
    own.run(own.audit(out, class_names=NAMES[: app.get("classes", CLASSES)]))
    records = read_lines(out / "leakage.jsonl")
    assert not {r["label_status"] for r in records} & {"FAILED", None}
    reasons = {r[key] for r in records for key in ("label_reason", "image_reason") if r[key]}
    assert any(reason in sentence for sentence in reasons)
    assert reason in shown(out)


def test_a_normalising_loader_and_momentum_are_seen_through(tmp_path: Path) -> None:
    out, app = tmp_path / "audit", App(momentum=0.9, normalization=Normalization((0.5,), (0.25,)))
    app.run(app.audit(out, judge=Judge()))
    records = [r for r in read_lines(out / "leakage.jsonl") if r["attack"] == 0]
    assert {(r["label_status"], r["image_status"]) for r in records} == {("RECOVERED",) * 2}
    assert all(r["psnr_db"] > 50 for r in records)


def test_clients_that_all_fail_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="flwr")
    app = App(failing=True)
    app.run(app.audit(tmp_path / "a"))
    (line, _) = read_lines(tmp_path / "a" / "rounds.jsonl")
    assert (line["replies"], line["quarantined"]) == (0, 3)
    assert "the client failed: RuntimeError: out of battery" in shown(tmp_path / "a")
    with pytest.raises(NothingAccepted):  # and the summary comes all the same
        app.run(ReplyGuard(app.audit(tmp_path / "b")))
    messages = [record.getMessage() for record in caplog.records]
    assert "No update was attacked: none came in, or no attack covers it." in messages
    with pytest.raises(UserError, match=r"holds no records: no update was attacked, since none"):
        build_report(tmp_path / "b")


def test_a_wrapper_of_anothers_around_it_leaves_the_summary_to_end_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="flwr")
    app = App()
    audit = app.audit(tmp_path / "audit")
    outer = DifferentialPrivacyServerSideFixedClipping(
        audit, noise_multiplier=0.1, clipping_norm=1.0, num_sampled_clients=3
    )
    app.run(outer)
    summary = f"`fl-sim report {tmp_path / 'audit'}` makes a page of this audit"
    assert summary not in caplog.messages
    for _ in range(2):
        audit.end_run()
    assert caplog.messages.count(summary) == 1
