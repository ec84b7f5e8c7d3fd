"""Scenarios: what a file says, what each mistake is told, and what the digest covers."""

from __future__ import annotations

import math
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from fl_sim.errors import UserError
from fl_sim.scenario import Attack, Scenario
from fl_sim.scenario.sections import Data, Every


def mistake(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        Scenario.parse(values)
    return str(caught.value)


def test_reads_a_file(design: Path) -> None:
    scenario = Scenario.load(design, ["data.clients=4"], seed=3)
    assert (scenario.name, scenario.seed, scenario.rounds) == ("quick", 3, 10)
    assert (scenario.data, scenario.client.lr) == (Data(clients=4), 1.0)
    assert [(stage.name, stage.parameters) for stage in scenario.defense] == [
        ("label-smoothing", {"smoothing": [0, 0.5]}),
        ("mixup", {}),
    ]
    assert scenario.attack[0].rounds == Every(every=5)


def test_everything_has_a_default() -> None:
    scenario = Scenario.parse({})
    assert (scenario.defense, scenario.attack) == ([], [])


@pytest.mark.parametrize(
    ("rounds", "clients", "covered"),
    [
        ("all", "all", {(1, 0), (1, 1), (2, 0), (2, 1)}),
        ([2], "all", {(2, 0), (2, 1)}),
        (Every(every=2), [1], {(2, 1)}),
        ([], "all", set()),
        (Every(every=1), [0, 1, 5], {(1, 0), (1, 1), (2, 0), (2, 1)}),
    ],
)
def test_an_attack_covers_what_it_says(
    rounds: Any, clients: Any, covered: set[tuple[int, int]]
) -> None:
    attack = Attack(rounds=rounds, clients=clients)
    pairs = {(server_round, client) for server_round in (1, 2) for client in (0, 1)}
    assert {pair for pair in pairs if attack.covers(*pair)} == covered


ROUNDS = 'must be "all", a list of round numbers (from 1) or { every = n }, found'
CLIENTS = 'must be "all" or a list of client numbers (from 0), found'
DEVICE = 'device: must be "auto", "cpu", "cuda", "cuda:N" or "mps", found'
SEED = "seed: must be a whole number from 0 to 2**63 - 1, found"
PLAIN = "must hold finite numbers, strings, booleans, or lists and tables of them, found"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        # keys
        ({"defenses": []}, "unknown key 'defenses'; did you mean 'defense'?"),
        ({"data": {"client": 3}}, "unknown key 'data.client'; did you mean 'clients'?"),
        (
            {"server": {"zzz": 3}},
            "unknown key 'server.zzz'; known: attack_jobs, attack_queue, capture, options, "
            "secure_aggregation, "
            "strategy",
        ),
        (
            {"attack": [{}, {"labels": "idlg"}]},
            "unknown key 'attack.1.labels'; did you mean 'label'?",
        ),
        ({"defense": [{}]}, "defense.0.name: is required, found none"),
        # types
        ({"rounds": True}, "rounds: must be a whole number, found true"),
        ({"rounds": 1.0}, "rounds: must be a whole number, found 1.0"),
        ({"data": {"clients": "ten"}}, "data.clients: must be a whole number, found 'ten'"),
        ({"client": {"lr": False}}, "client.lr: must be a number, found false"),
        ({"client": {"nesterov": 1}}, "client.nesterov: must be true or false, found 1"),
        ({"name": 3}, "name: must be a string, found 3"),
        ({"attack": [{"image": 3}]}, "attack.0.image: must be a string, found 3"),
        ({"data": 3}, "data: must be a table, found 3"),
        ({"model": {"options": 3}}, "model.options: must be a table, found 3"),
        (
            {"defense": {"name": "mixup"}},
            "defense: must be tables, each headed [[defense]], found {",
        ),
        ({"attack": "idlg"}, "attack: must be tables, each headed [[attack]], found 'idlg'"),
        ({"attack": [3]}, "attack.0: must be a table, found 3"),
        # ranges
        ({"rounds": 0}, "rounds: must be at least 1, found 0"),
        ({"images": -1}, "images: must be at least 0, found -1"),
        ({"seed": -1}, f"{SEED} -1"),
        ({"seed": 2**63}, f"{SEED} {2**63}"),
        ({"client": {"lr": 0.0}}, "client.lr: must be above 0, found 0.0"),
        ({"client": {"lr": math.nan}}, "client.lr: must be a finite number, found nan"),
        ({"client": {"lr": math.inf}}, "client.lr: must be a finite number, found inf"),
        ({"client": {"fraction": 1.5}}, "client.fraction: must be at most 1, found 1.5"),
        ({"client": {"momentum": 1.0}}, "client.momentum: must be below 1, found 1.0"),
        ({"client": {"nesterov": True}}, "client: nesterov needs a momentum above 0, found 0.0"),
        # choices
        (
            {"data": {"partition": "random"}},
            "data.partition: must be 'iid', 'dirichlet' or 'pathological', found 'random'",
        ),
        ({"device": "cud"}, f"{DEVICE} 'cud'"),
        ({"device": "cuda:"}, f"{DEVICE} 'cuda:'"),
        ({"device": "cpu\n"}, f"{DEVICE} 'cpu\\n'"),
        ({"device": 0}, f"{DEVICE} 0"),
        # unions
        ({"attack": [{"rounds": "some"}]}, f"attack.0.rounds: {ROUNDS} 'some'"),
        ({"attack": [{"rounds": 3}]}, f"attack.0.rounds: {ROUNDS} 3"),
        ({"attack": [{"rounds": [0]}]}, f"attack.0.rounds: {ROUNDS} [0]"),
        ({"attack": [{"rounds": [True]}]}, f"attack.0.rounds: {ROUNDS} [True]"),
        ({"attack": [{"rounds": {"every": 0}}]}, f"attack.0.rounds: {ROUNDS} {{'every': 0}}"),
        ({"attack": [{"rounds": {"evry": 1}}]}, f"attack.0.rounds: {ROUNDS} {{'evry': 1}}"),
        ({"attack": [{}, {"clients": "0"}]}, f"attack.1.clients: {CLIENTS} '0'"),
        ({"attack": [{"clients": [-1]}]}, f"attack.0.clients: {CLIENTS} [-1]"),
        # names
        (
            {"data": {"name": "mnist5k"}},
            "data.name: unknown dataset 'mnist5k'; did you mean 'mnist-5k'?",
        ),
        ({"model": {"name": "fcn"}}, "model.name: unknown model 'fcn'; did you mean 'fcn4'?"),
        (
            {"server": {"strategy": "fedavgm"}},
            "server.strategy: unknown strategy 'fedavgm'; did you",
        ),
        (
            {"attack": [{"label": "idgl"}]},
            "attack.0.label: unknown label attack 'idgl'; did you mean",
        ),
        ({"attack": [{"image": "zzz"}]}, "attack.0.image: unknown image attack 'zzz'; known: "),
        ({"defense": [{"name": "mixp"}]}, "defense.0.name: unknown defense 'mixp'; did you mean"),
        # a defense's options
        (
            {"defense": [{"name": "mixup", "beta": 1}]},
            "defense.0: defense 'mixup': unknown option 'beta'; known: alpha",
        ),
        (
            {"defense": [{"name": "dp-noise", "noise_multiplier": 1}]},
            "defense.0: defense 'dp-noise': noise_multiplier is relative to clipping_norm, found",
        ),
        (
            {"defense": [{"name": "mixup", "alpha": "x"}]},
            "defense.0: defense 'mixup': alpha must be a finite number above 0, found 'x'",
        ),
        # what JSON can't hold
        ({"data": {"options": {"a": math.nan}}}, f"data.options: {PLAIN} {{'a': nan}}"),
        ({"model": {"options": {"a": date(2020, 1, 1)}}}, f"model.options: {PLAIN}"),
        (
            {"defense": [{"name": "their:Defense", "x": math.inf}]},
            f"defense.0: {PLAIN} {{'x': inf}}",
        ),
    ],
)
def test_a_mistake_is_one_sentence(values: dict[str, Any], sentence: str) -> None:
    found = mistake(values)
    assert found.startswith(sentence)
    assert "\n" not in found


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps"])
def test_devices(device: str) -> None:
    assert Scenario.parse({"device": device}).device == device


def test_names_of_ones_own_are_left_to_the_run() -> None:
    own = "their_package.things:Thing"
    values = {"data": {"name": own}, "model": {"name": own}, "server": {"strategy": own}}
    Scenario.parse(values | {"defense": [{"name": own, "x": 1}], "attack": [{"label": own}]})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"rounds = ", "isn't valid TOML: "),
        (b"rounds = 1\nrounds = 2", "isn't valid TOML: Cannot overwrite a value"),
        (b"name = '\xff'", "isn't valid TOML: "),
        (None, "can't be read: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "broken.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        Scenario.load(path)
    assert str(caught.value).startswith(f"scenario {path} {sentence}")


def test_json_round_trips(design: Path) -> None:
    scenario = Scenario.load(design)
    again = Scenario.parse(scenario.model_dump(mode="json"))
    assert again == scenario
    assert again.to_json() == scenario.to_json()
    assert {scenario: "cached"}[again] == "cached"


def test_the_digest_covers_what_determines_the_records(design: Path) -> None:
    overrides = ["seed=8", "device=auto", "data.clients=9", "model.bias=true"]
    overrides += ["client.lr=2", "server.options.x=1", "defense.1.alpha=2", "attack=[]"]
    digests = [Scenario.load(design, [override]).digest() for override in ("seed=7", *overrides)]
    assert len(set(digests)) == 9


def test_the_digest_leaves_out_the_rest(design: Path) -> None:
    scenario = Scenario.load(design)
    other = scenario.model_copy(update={"name": "other", "images": 0, "engine": "ray", "rounds": 9})
    assert other.digest() == scenario.digest()
    assert other != scenario
    renamed = scenario.model_copy(update={"name": "other"})
    assert hash(renamed) == hash(scenario)
    assert renamed != scenario


def test_a_scenario_cannot_be_changed() -> None:
    scenario = Scenario.parse({})
    with pytest.raises(ValueError, match="frozen"):
        scenario.rounds = 3


def test_validation_without_defenses_needs_no_torch() -> None:
    code = (
        "import sys; from fl_sim.scenario import Scenario\n"
        "Scenario.parse({'device': 'cuda:1', 'attack': [{}]})\n"
        "sys.exit(' '.join({'torch', 'flwr'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "data", [{"partition": "dirichlet", "alpha": 2.0}, {"partition": "pathological", "classes": 1}]
)
def test_a_partition_reads_its_own_option(data: dict[str, Any]) -> None:
    scenario = Scenario.parse({"data": data})
    assert Scenario.parse(scenario.model_dump(mode="json")) == scenario
    assert Scenario.parse({"data": {"partition": data["partition"]}}).digest() != scenario.digest()
    assert Scenario.parse({}).with_changes({"data.partition": data["partition"]})


def test_an_attack_on_a_client_that_is_not_there_is_an_error() -> None:
    with pytest.raises(UserError) as error:
        Scenario.parse({"attack": [{"clients": [9]}, {"clients": [3, 10]}]})
    assert str(error.value) == "attack.1.clients: must be at most 9, found 10"
