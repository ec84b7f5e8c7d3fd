"""Changes of a scenario: as text from the command line, and as values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fl_sim.errors import UserError
from fl_sim.scenario import Scenario
from fl_sim.scenario.sections import Every

EITHER = ("local_steps", "local_epochs")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("rounds=8", ("rounds",), 8),
        ("client.lr = 0.5", ("client", "lr"), 0.5),
        ("client.nesterov=false", ("client", "nesterov"), False),
        ("server.strategy=fedadam", ("server", "strategy"), "fedadam"),
        ('server.strategy="fedadam"', ("server", "strategy"), "fedadam"),
        ("defense.0.smoothing=[0, 0.25]", ("defense", 0, "smoothing"), [0, 0.25]),
        ("defense=[]", ("defense",), []),
        ("defense=[{name='mixup', alpha=2}]", ("defense", 0, "alpha"), 2),
        ("attack.1.rounds={every = 3}", ("attack", 1, "rounds", "every"), 3),
        ("data.options.root=a=b", ("data", "options", "root"), "a=b"),
        ("name=", ("name",), ""),
    ],
)
def test_overrides(design: Path, override: str, key: tuple[str | int, ...], value: object) -> None:
    found: Any = Scenario.load(design, [override]).model_dump()
    for part in key:
        found = found[part]
    assert found == value


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rounds", "--set must be key.path=value, found 'rounds'"),
        ("=3", "--set must be key.path=value, found '=3'"),
        ("data..clients=3", "--set must be key.path=value, found 'data..clients=3'"),
        ("rounds.x=1", "--set rounds.x: rounds must be a table, found 10"),
        ("data.clients.x.y=1", "--set data.clients.x.y: data.clients must be a table, found 10"),
        (
            "defense.2.alpha=1",
            "--set defense.2.alpha: '2' must be the number of an entry of defense, counted from 0; "
            "it has 2",
        ),
        (
            "attack.last.label=idlg",
            "--set attack.last.label: 'last' must be the number of an entry",
        ),
        ("clint.lr=2", "unknown key 'clint'; did you mean 'client'?"),
        ("client.lrr=2", "unknown key 'client.lrr'; did you mean 'lr'?"),
        ("rounds=ten", "rounds: must be a whole number, found 'ten'"),
        ("rounds=1\nseed=2", "rounds: must be a whole number, found '1\\nseed=2'"),
    ],
)
def test_a_wrong_override_is_one_sentence(design: Path, override: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        Scenario.load(design, [override])
    assert str(caught.value).startswith(sentence)


def test_changes_are_typed_and_leave_the_scenario_as_it_was(design: Path) -> None:
    scenario = Scenario.load(design)
    before = scenario.to_json()
    options = {"tolerance": [1e-3]}
    changes = {
        "client.lr": 0.05,
        "defense.0.smoothing": 0.2,
        "attack.1.rounds": {"every": 3},
        "attack.1.label_options": options,
        "attack.1.label_options.more": 1,
        "seed": 5,
    }
    other = scenario.with_changes(changes)
    assert scenario.to_json() == before
    assert options == {"tolerance": [1e-3]}
    assert (other.client.lr, other.seed, other.name) == (0.05, 5, scenario.name)
    assert other.defense[0].parameters["smoothing"] == 0.2
    assert other.attack[1].rounds == Every(every=3)
    assert other.attack[1].label_options == options | {"more": 1}
    assert scenario.with_changes({}) == scenario
    texts = ["client.lr=0.05", "defense.0.smoothing=0.2", "attack.1.rounds={every=3}", "seed=5"]
    texts += ["attack.1.label_options={tolerance=[1e-3]}", "attack.1.label_options.more=1"]
    assert Scenario.load(design, texts) == other


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("data..clients", 3, "a key must be key.path, found 'data..clients'"),
        ("rounds.x", 1, "rounds.x: rounds must be a table, found 10"),
        ("defense.2.alpha", 1, "defense.2.alpha: '2' must be the number of an entry of defense,"),
        ("client.lrr", 2, "unknown key 'client.lrr'; did you mean 'lr'?"),
        ("rounds", "10", "rounds: must be a whole number, found '10'"),
        ("client.lr", -1.0, "client.lr: must be above 0, found -1.0"),
    ],
)
def test_a_wrong_change_is_one_sentence(
    design: Path, path: str, value: object, sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        Scenario.load(design).with_changes({path: value})
    assert str(caught.value).startswith(sentence)


def test_an_override_of_a_defense_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "quick.toml"
    path.write_text("rounds = 1", encoding="utf-8")
    with pytest.raises(UserError, match=r"'0' must be the number of an entry of defense, .* has 0"):
        Scenario.load(path, ["defense.0.name=mixup"])


@pytest.mark.parametrize(("key", "other"), [EITHER, EITHER[::-1]])
def test_steps_and_epochs_take_each_others_place(tmp_path: Path, key: str, other: str) -> None:
    path = tmp_path / "quick.toml"
    path.write_text(f"[client]\n{other} = 3", encoding="utf-8")
    for changed in (
        Scenario.load(path, [f"client.{key}=2"]),
        Scenario.load(path).with_changes({f"client.{key}": 2}),
        Scenario.load(path).with_changes({f"client.{key}": 4}).with_changes({f"client.{key}": 2}),
    ):
        assert changed.client.model_dump(include=set(EITHER)) == {key: 2, other: None}
    assert Scenario.load(path, ["client.lr=0.5"]).client.model_dump()[other] == 3


def test_one_step_is_what_a_scenario_without_either_says(design: Path) -> None:
    scenario = Scenario.load(design)
    assert (scenario.client.local_steps, scenario.client.local_epochs) == (1, None)
    assert Scenario.load(design, ["client.local_steps=1"]) == scenario
    assert scenario.with_changes({}) == scenario
    assert scenario.with_changes({"client.local_epochs": 1}) != scenario
