"""The server's side of a run: what it evaluates, writes down and commits, round by round."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.numpy import load_file
from torch.nn.functional import cross_entropy

from fl_sim.errors import NothingAccepted, UserError
from fl_sim.federation import Federation
from fl_sim.flower import client, roll_call, server
from fl_sim.flower.engines.local import LocalGrid
from fl_sim.flower.evaluation import evaluate
from fl_sim.flower.run import run
from fl_sim.flower.server import Server
from fl_sim.flower.wire import load_tensors, wire_tensors
from fl_sim.privacy import epsilon
from fl_sim.run_folder import RunFolder
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]


def lines_of(folder: Path, log: str = "rounds.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / log).read_text().splitlines()]


@pytest.fixture(scope="module")
def plain(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of the tiny scenario."""
    folder = tmp_path_factory.mktemp("plain")
    run(tiny(), folder)
    return folder


def test_each_round_has_a_line_from_the_initial_model_on(plain: Path) -> None:
    lines = lines_of(plain)
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    assert [line["replies"] for line in lines] == [0, 3, 3, 3]
    assert {line["quarantined"] for line in lines} == {0}
    assert {line["epsilon"] for line in lines} == {None}
    assert all(line["seconds"] > 0 for line in lines)


def test_accuracy_and_loss_are_those_of_the_global_model(tiny: Tiny, plain: Path) -> None:
    federation = Federation.of(tiny())
    weights = load_file(plain / "checkpoint" / "round-00003.safetensors")
    for server_round in (0, 3):
        model = federation.build_model()
        if server_round:
            tensors = {k.removeprefix("model/"): torch.from_numpy(v) for k, v in weights.items()}
            load_tensors(model, tensors)
        dataset = federation.dataset
        logits = model(dataset.test_images).detach()
        hits = (logits.argmax(dim=1) == dataset.test_labels).float().mean()
        line = lines_of(plain)[server_round]
        assert line["accuracy"] == pytest.approx(float(hits))
        loss = float(cross_entropy(logits, dataset.test_labels))
        assert line["loss"] == pytest.approx(loss, rel=1e-6)  # float32 sums in another order


def test_test_examples_beyond_one_batch_count_once(tiny: Tiny) -> None:
    scenario = tiny("data.name=mnist-5k", "data.test_examples=501", "model.name=fcn4")
    federation = Federation.of(scenario)
    model = federation.build_model()
    arrays = client.to_arrays(wire_tensors(model, "eval"))
    accuracy, loss = evaluate(federation, arrays, 0)
    logits = model(federation.dataset.test_images[:501]).detach()
    labels = federation.dataset.test_labels[:501]
    assert accuracy == pytest.approx(float((logits.argmax(dim=1) == labels).float().mean()))
    assert loss == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-5)  # likewise


def test_the_first_images_of_a_round_are_kept(tiny: Tiny, plain: Path) -> None:
    names = sorted(path.name for path in (plain / "images").iterdir())
    assert names == [f"r000{r}-c000{c}-a0-e0.npz" for r in (1, 2, 3) for c in (0, 1)]
    with np.load(plain / "images" / names[0]) as kept:
        assert {name: kept[name].shape for name in kept} == {
            "label": (4,),
            "true_label": (4,),
            "image": (1, 4, 4),
            "true_image": (1, 4, 4),
        }
        truth = Federation.of(tiny()).training_batch(0, 1, 0)
        assert np.array_equal(kept["true_image"], truth.images[0].numpy())


def test_epsilon_is_that_of_the_client_that_took_part_most_often(
    tiny: Tiny, tmp_path: Path
) -> None:
    stages = 'defense=[{name="dp-noise", clipping_norm=1.0, noise_multiplier=2.0}]'
    scenario = tiny(stages, "client.fraction=0.5", "rounds=4", "attack=[]", "data.clients=4")
    run(scenario, tmp_path)
    samples = [
        Federation.of(scenario).sampled_clients(server_round) for server_round in (1, 2, 3, 4)
    ]
    expected: list[float | None] = []
    for server_round in range(5):
        taken = [number for sample in samples[:server_round] for number in sample]
        most = max((taken.count(number) for number in taken), default=0)
        expected.append(epsilon(2.0, most))
    assert [line["epsilon"] for line in lines_of(tmp_path)] == expected
    assert len(set(expected)) > 2


def test_a_diverged_run_goes_on_to_its_end(tiny: Tiny, tmp_path: Path) -> None:
    """Weights of 1e25 are finite, but not what a network makes of them, nor what follows."""
    run(tiny("model.name=mlp", "client.lr=1e25"), tmp_path)
    lines = lines_of(tmp_path)
    assert [line["loss"] is None for line in lines] == [False, True, True, True]
    assert [(line["replies"], line["quarantined"]) for line in lines[1:]] == [
        (3, 0),
        (0, 3),
        (0, 3),
    ]
    reasons = {r["label_reason"] for r in lines_of(tmp_path, "leakage.jsonl") if r["round"] > 1}
    assert reasons == {"reply left out: array '2.weight' has NaN or infinite entries"}


def test_a_scalar_parameter_survives_a_run(tiny: Tiny, tmp_path: Path) -> None:
    scenario = tiny("model.name=third_party:Tempered", "server.strategy=fedadam")
    run(scenario, tmp_path)
    assert (
        load_file(tmp_path / "checkpoint" / "round-00003.safetensors")["model/temperature"].shape
        == ()
    )


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.options.colour=1", "unknown option 'colour'"),
        ("model.name=third_party:nothing", "can't be imported"),
        ("attack.0.label_options.colour=1", "unknown option 'colour'"),
        ("attack.0.label=third_party:nothing", "can't be imported"),
        ("server.options.colour=1", "unknown option 'colour'; known: "),
        ("server.options.fraction_train=0.5", "unknown option 'fraction_train'"),
        ("server.strategy=third_party:nothing", "can't be imported"),
        ("server.strategy=:nothing", "can't be imported"),
        ("server.strategy=math:pi", "can't be imported"),
        ("server.strategy=third_party:Raises", "must build a Flower Strategy, found"),
        ("device=cuda:99", "device must be one that PyTorch finds"),
    ],
)
def test_a_mistake_is_found_before_the_folder_is_touched(
    tiny: Tiny, tmp_path: Path, override: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        run(tiny(override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_facts_without_a_joint_meaning_are_an_error_before_the_folder_is_touched(
    tiny: Tiny, tmp_path: Path
) -> None:
    """For an aware attacker; one who knows nothing has nothing to put together."""
    noise = '{name="dp-noise", noise_std=0.1}'
    clipping = '{name="dp-noise", clipping_norm=1.0, noise_multiplier=0.0}'
    clipped = tiny(f"defense=[{noise}, {clipping}]", "rounds=1")
    with pytest.raises(UserError, match="found clipping after noise"):
        run(clipped.with_changes({"attack.0.attacker": "aware"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(clipped, tmp_path / "run")


def test_all_clients_must_answer_who_they_are(tiny: Tiny, tmp_path: Path) -> None:
    app = ClientApp()

    @app.query()
    def shy(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            raise RuntimeError("not telling")
        return client.identify(message, context)

    scenario = tiny()
    sentence = r"data.clients is 3, but 2 of 3 nodes answered as clients \[0, 2\]"
    with RunFolder.open(tmp_path, scenario, resume=False) as folder:
        with pytest.raises(UserError, match=sentence):
            Server(scenario, folder).run(LocalGrid(app, 3, {"scenario": scenario.to_json()}))
        assert folder.last_round() is None


@pytest.mark.parametrize("wanted", [True, False, None])
def test_a_flower_run_leaves_its_report_and_says_where(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture, wanted: bool | None
) -> None:
    caplog.set_level("INFO", logger="flwr")
    out = tmp_path / "run"
    config: dict[str, Any] = {
        "scenario": tiny("rounds=1").to_json(),
        "out": str(out),
        "resume": False,
    }
    config |= {} if wanted is None else {"report": wanted}
    server.app(LocalGrid(client.app, 3, config), Context(1, 0, {}, RecordDict(), config))
    assert (out / "report.html").exists() == (f"report: {out / 'report.html'}" in caplog.messages)
    assert (out / "report.html").exists() == bool(wanted)
    assert any("the label of 3 of 3 examples" in m for m in caplog.messages) == (bool(wanted))


def test_a_flower_run_without_any_accepted_reply_leaves_its_report_too(
    tiny: Tiny, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    app = ClientApp()
    app.query()(client.identify)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise RuntimeError("out of battery")

    config: dict[str, Any] = {
        "scenario": tiny("rounds=1").to_json(),
        "out": str(out),
        "resume": False,
        "report": True,
    }
    with pytest.raises(NothingAccepted, match="out of battery"):
        server.app(LocalGrid(app, 3, config), Context(1, 0, {}, RecordDict(), config))
    assert "out of battery" in (out / "report.html").read_text()


def test_clients_that_are_not_there_are_waited_for_and_then_named(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll_call, "QUERY_TIMEOUT_SECONDS", 0.0)
    scenario = tiny()
    with (
        RunFolder.open(tmp_path, scenario, resume=False) as folder,
        pytest.raises(UserError, match=r"data.clients is 3, but 2 of 2 nodes answered"),
    ):
        Server(scenario, folder).run(LocalGrid(client.app, 2, {"scenario": scenario.to_json()}))


def test_the_pictures_of_a_batch_come_from_all_clients(tiny: Tiny, tmp_path: Path) -> None:
    guess = 'attack=[{label="third_party:Draws"}]'
    run(tiny(guess, "client.batch_size=4", "images=6", "rounds=2"), tmp_path)
    for server_round in (1, 2):
        names = [path.name for path in tmp_path.glob(f"images/r{server_round:04d}-*.npz")]
        clients = sorted(name.split("-")[1] for name in names)
        assert clients == ["c0000", "c0000", "c0001", "c0001", "c0002", "c0002"]


def test_delta_is_the_scenarios(tiny: Tiny, tmp_path: Path) -> None:
    noise = 'defense=[{name="dp-noise", clipping_norm=1.0, noise_multiplier=20.0}]'
    found = {}
    for delta in (1e-5, 1e-9):
        out = tmp_path / str(delta)
        run(tiny(noise, "rounds=1", f"privacy.delta={delta}"), out)
        found[delta] = lines_of(out)[-1]["epsilon"]
        assert found[delta] == epsilon(20.0, 1, delta=delta)
    assert found[1e-9] > found[1e-5]


@pytest.mark.parametrize(
    ("optimizer", "lr"), [("adam", 1e-3), ("rmsprop", 1e-3), ("adagrad", 0.01)]
)
def test_of_adam_and_its_kin_a_class_can_be_read(
    tiny: Tiny, tmp_path: Path, optimizer: str, lr: float
) -> None:
    attacks = 'attack=[{label="idlg", image="analytic"}, {label="soft-label"}, {label="llg"}]'
    run(tiny(attacks, f"client.optimizer={optimizer}", f"client.lr={lr}", "rounds=2"), tmp_path)
    lines = lines_of(tmp_path, "leakage.jsonl")
    classes = [line["label_top1"] for line in lines if line["attack"] == 0]
    assert sum(classes) >= 5  # of 6; smoothing may leave the sign of a likely class open
    others = [line for line in lines if line["attack"] != 0]
    assert {line["label_status"] for line in others} == {"NOT_APPLICABLE"}
    assert {line["image_status"] for line in lines} == {"NOT_APPLICABLE", None}
    assert all(
        "only the signs of the gradient's entries" in line["label_reason"] for line in others
    )


def test_several_steps_of_adam_leave_nothing_to_attack(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny("client.optimizer=adamw", "client.local_steps=3", "rounds=1"), tmp_path)
    lines = lines_of(tmp_path, "leakage.jsonl")
    assert {line["label_status"] for line in lines} == {"NOT_APPLICABLE"}
    (reason,) = {line["label_reason"] for line in lines}
    assert reason.startswith("AdamW divides each entry by its own history: 3 steps leave neither")


def test_images_in_records_have_their_range(plain: Path) -> None:
    lines = lines_of(plain, "leakage.jsonl")
    assert {(line["image_low"], line["image_high"]) for line in lines} == {(0.0, 1.0)}
