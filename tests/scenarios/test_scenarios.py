"""Every shipped scenario is valid, and explains itself to a user who copies it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from fl_sim.flower.run import run
from fl_sim.leakage.records import read_lines
from fl_sim.scenario import Attack, Scenario
from fl_sim.scenario.sections import Audit, Client, Data, Model, Privacy, Server

FOLDER = Path(__file__).parents[2] / "scenarios"
FILES = sorted(FOLDER.glob("*.toml"))
KEY = re.compile(r"(?:# )?([a-z_]+) = (.*)")

every_scenario = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_the_documented_scenarios_are_there() -> None:
    assert {path.stem for path in FILES} >= {
        "baseline",
        "label-smoothing",
        "mixup",
        "dp-noise",
        "batch",
        "batch-of-digits",
        "defense-grid",
        "fedavg",
        "resnet",
    }


@every_scenario
def test_scenario_parses_and_attacks(path: Path) -> None:
    scenario = Scenario.load(path)
    assert scenario.name == path.stem
    assert scenario.attack


@every_scenario
@pytest.mark.parametrize(
    ("partition", "other"), [("dirichlet", "classes"), ("pathological", "alpha")]
)
def test_keys_that_are_commented_out_are_valid(
    path: Path, tmp_path: Path, partition: str, other: str
) -> None:
    """All at once but those of which a scenario has one: partitions, steps and epochs, sums."""
    commented = rf"^# (?!{other}|local_|secure_|combine)(?=[a-z_]+ = )"
    text = re.sub(commented, "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert text != path.read_text(encoding="utf-8")
    full = tmp_path / path.name
    full.write_text(text, encoding="utf-8")
    Scenario.load(full, [f"data.partition={partition}"])


@every_scenario
@pytest.mark.parametrize("key", ["local_steps", "local_epochs"])
def test_steps_and_epochs_take_each_others_place(path: Path, key: str) -> None:
    shown = re.search(rf"^(?:# )?({key} = \d+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert shown is not None
    client = Scenario.load(path, [f"client.{shown[1]}"]).client
    given = {"local_steps": client.local_steps, "local_epochs": client.local_epochs}
    assert given.pop(key) == 1
    assert list(given.values()) == [None]


@every_scenario
def test_the_initialisation_is_named(path: Path) -> None:
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    assert values["model"]["init"] in ("default", "he")


def test_every_digit_of_a_batch_is_recovered(tmp_path: Path) -> None:
    """More examples than classes, of a network as people initialise it, in the first round."""
    changes = ["rounds=1", "data.clients=2", "data.test_examples=40", "images=0"]
    run(Scenario.load(FOLDER / "batch-of-digits.toml", changes), tmp_path / "run")
    records = read_lines(tmp_path / "run" / "leakage.jsonl")
    assert [record["batch_size"] for record in records] == [16] * 32
    for record in records:
        assert (record["label_status"], record["image_status"]) == ("RECOVERED", "RECOVERED")
        assert record["augmentation"] == "label-smoothing"
        assert record["label_linf"] < 1e-3
        assert record["psnr_db"] > 100  # measured: 115 and more


@pytest.mark.slow
def test_every_digit_of_an_epoch_is_recovered(tmp_path: Path) -> None:
    """Of a client that shuffled its examples into four batches, and told nobody how."""
    changes = ["rounds=1", "attack.1.clients=[0]", "data.test_examples=40", "images=0"]
    run(Scenario.load(FOLDER / "fedavg.toml", changes), tmp_path / "run")
    records = read_lines(tmp_path / "run" / "leakage.jsonl")
    found = [record for record in records if record["label_attack"] == "soft-label"]
    assert len(found) == 16
    for record in found:
        assert (record["label_status"], record["image_status"]) == ("RECOVERED", "RECOVERED")
        assert record["label_linf"] < 1e-5
        assert record["psnr_db"] > 100  # measured: 116 and more


@every_scenario
def test_first_line_tells_purpose_and_duration(path: Path) -> None:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    assert re.fullmatch(r"# What .+\. .+: .*(second|minute)s?\.", first)


@every_scenario
def test_every_key_has_a_comment(path: Path) -> None:
    lines = [m for line in path.read_text(encoding="utf-8").split("\n") if (m := KEY.match(line))]
    assert len(lines) > 20
    bare = [line[0] for line in lines if not re.search(r" # \S.{9,}", line[2])]
    assert not bare


@every_scenario
def test_every_key_that_exists_is_shown(path: Path) -> None:
    sections = {"data": Data, "model": Model, "client": Client, "server": Server, "attack": Attack}
    sections |= {"privacy": Privacy, "audit": Audit}
    shown: dict[str, set[str]] = {"": set()}
    section = ""
    for line in path.read_text(encoding="utf-8").split("\n"):
        if header := re.match(r"\[+(\w+)\]+", line):
            section = header[1]
            shown.setdefault(section, set())
        elif key := KEY.match(line):
            shown[section].add(key[1])
    for name, model in sections.items():
        assert shown[name] == set(model.model_fields)
    top_level = set(Scenario.model_fields) - sections.keys() - {"name", "defense", "tracker"}
    assert shown[""] == top_level
    assert "\n# [[tracker]] " in path.read_text(encoding="utf-8")


def test_scenarios_differ_in_their_defense_only() -> None:
    """A comparison between them is one of defenses (and of what the attacker is told of them)."""

    def rest(path: Path) -> dict[str, object]:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        values.pop("defense", None)
        for attack in values["attack"]:
            del attack["attacker"]
        return values

    # Batches and the ResNet are about the network, epochs about how clients train.
    others = ("batch", "batch-of-digits", "defense-grid", "fedavg", "resnet")
    compared = [p for p in FILES if p.stem not in others]
    assert len(compared) >= 4
    assert all(rest(path) == rest(compared[0]) for path in compared)
