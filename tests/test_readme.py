"""What the README shows works: its examples run, its commands exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from typer.testing import CliRunner

from fl_sim import privacy
from fl_sim.capture.make import recipe_of
from fl_sim.cli import app
from fl_sim.flower.engines.local import LocalGrid
from fl_sim.flower.run import run
from fl_sim.leakage.records import read_lines
from fl_sim.report import build_report
from fl_sim.scenario import Scenario
from fl_sim.sweep.folder import SweepFolder
from fl_sim.sweep.grid import Grid

ROOT = Path(__file__).parents[1]
DOCUMENTS = {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md")}
README = DOCUMENTS["README.md"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Return the arguments of a program's command lines, in the README's order."""
    lines = [
        shlex.split(line, comments=True) for block in blocks("bash") for line in block.split("\n")
    ]
    return [line[1:] for line in lines if line[:1] == [program]]


@pytest.mark.usefixtures("moves_generators")  # as a user's script does
@pytest.mark.parametrize("block", blocks("python"))
def test_python_example_runs(block: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.usefixtures("moves_generators")
def test_the_audit_of_ones_own_app_recovers_the_clients_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The README's ServerApp, with the ClientApp that it leaves to the reader."""
    (block,) = [block for block in blocks("python") if "ServerApp" in block]
    example: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), example)
    client_app = ClientApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        label = 0.9 * one_hot(torch.tensor([context.node_id]), 10) + 0.1 / 10
        cross_entropy(model(torch.rand(1, 1, 28, 28)), label).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        records = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": 1}),
        }
        return Message(RecordDict(records), reply_to=message)

    monkeypatch.chdir(tmp_path)
    example["app"](LocalGrid(client_app, 3, {}), Context(1, 0, {}, RecordDict(), {}))
    records = read_lines(tmp_path / "audit" / "leakage.jsonl")
    assert len(records) == 3 * 3
    assert {record["label_status"] for record in records} == {"RECOVERED"}
    assert {record["image_status"] for record in records} == {"RECOVERED"}
    assert all(abs(record["smoothing"] - 0.1) < 1e-3 for record in records)
    assert all(record["label_linf"] is None for record in records)  # no truth to compare with
    names = [record["label_class_name"] for record in records]
    assert names == ["one", "two", "three"] * 3  # nodes 1, 2 and 3
    page = build_report(tmp_path / "audit").read_text()
    assert "The server vouches for 9 images and 9 labels of 9 examples." in page


def test_there_is_an_example_of_each_kind() -> None:
    assert blocks("python")
    assert blocks("toml")
    assert len(commands("fl-sim")) > 5
    assert ["demo"] in commands("make")


def write_an_update(folder: Path) -> None:
    """Leave the files that the README's `fl-sim capture` reads."""
    model = recipe_of("mlp", options={}, classes=10, input_shape=(1, 28, 28), bias=True).build()
    save_file(model.state_dict(), folder / "before.safetensors")
    with torch.random.fork_rng():
        cross_entropy(model(torch.rand(1, 1, 28, 28)), torch.tensor([3])).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    torch.save(model.state_dict(), folder / "after.pt")


def _with_few_draws(audit: Any, *arguments: Any, **options: Any) -> Any:
    return audit(*arguments, **options | {"draws": 100})


@pytest.mark.usefixtures("here")
def test_fl_sim_commands_are_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of them in order, as a reader would; of the simulation, what keeps captures is run."""

    def simulate(scenario: Scenario, out: Path, **options: object) -> Path:
        assert isinstance(scenario, Scenario)
        if scenario.server.capture:
            few = {"rounds": 1, "data.clients": 2, "data.test_examples": 10}
            return run(scenario.with_changes(few), out)
        (out / "scenario.json").write_text(json.dumps({"scenario": scenario.model_dump()}))
        return out

    def begin(grid: Grid, out: Path, *, resume: bool, **options: object) -> None:
        with SweepFolder.open(out, grid, resume=resume):
            pass

    monkeypatch.chdir(tmp_path)
    stand_ins = {
        "fl_sim.bench.run": SimpleNamespace(run_suite=lambda suite, **options: []),
        "fl_sim.flower.run": SimpleNamespace(run=simulate),
        "fl_sim.report": SimpleNamespace(
            build_report=lambda out: out / "report.html",
            headline=lambda out: "It leaks.",
            notice=lambda out: None,
        ),
        "fl_sim.report.comparison": SimpleNamespace(
            build_comparison=lambda comparison, out: out / "report.html",
            outcome=lambda comparison: "It differs.",
        ),
        "fl_sim.leakage.table": SimpleNamespace(table=lambda records: ""),
    }
    monkeypatch.setattr("fl_sim.sweep.run_sweep", begin)
    few_draws = partial(_with_few_draws, privacy.audit_mechanism)
    monkeypatch.setattr("fl_sim.privacy.audit_mechanism", few_draws)
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module)
    (mine,) = blocks("toml")
    assert Scenario.parse(tomllib.loads(mine))
    Path("mine.toml").write_text(mine)
    Path("audit").mkdir()  # of the app that is audited
    write_an_update(Path())
    for line in commands("fl-sim"):
        arguments, target = (line[:-2], line[-1]) if line[-2:-1] == [">"] else (line, None)
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{arguments}: {result.stderr}"
        if target is not None:
            Path(target).write_text(result.stdout)
    assert Path("mine.toml").read_text() == (ROOT / "scenarios/label-smoothing.toml").read_text()


@pytest.mark.e2e
def test_make_targets_exist() -> None:
    targets = {
        name for text in DOCUMENTS.values() for name in re.findall(r"`make ([a-z-]+)`", text)
    }
    targets |= {target for target, *_ in commands("make")}
    assert targets >= {"demo", "test", "test-all"}
    for target in sorted(targets):
        plan = ["make", "--dry-run", "--no-print-directory", target]
        done = subprocess.run(plan, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.e2e
def test_make_lists_every_target() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony
    assert re.findall(r"^make ([a-z-]+) +\S", listed, flags=re.MULTILINE) == phony[1].split()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_and_folders_that_are_named_exist(name: str) -> None:
    named = re.findall(r"`([a-z_]+/[a-z_/.]*|[A-Z]+\.md|\.ci/run)`", DOCUMENTS[name])
    left_by_a_run = {"checkpoint/", "figures/", "images/"}
    assert not [path for path in named if path not in left_by_a_run and not (ROOT / path).exists()]
