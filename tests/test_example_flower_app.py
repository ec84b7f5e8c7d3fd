"""The example app is what its README shows; it trains, and its log says what could be tried."""

from __future__ import annotations

import html
import json
import os
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from fl_sim.flower.engines import ray as simulation_ray
from fl_sim.flower.engines.local import LocalGrid
from fl_sim.flower.engines.processes import stopped_at_exit
from fl_sim.report import build_report, headline

EXAMPLE = Path(__file__).parents[1] / "examples" / "flower-app"
README = (EXAMPLE / "README.md").read_text("utf-8")
FILES = [*(EXAMPLE / "digits_app").glob("*.py"), EXAMPLE / "try.py"]
SOURCES = {path.name: path.read_text("utf-8") for path in FILES}
CONFIG = {"num-server-rounds": 2, "batch-size": 32, "optimizer": "adam", "lr": 0.001}
BEFORE = """\
strategy = FedAvg()
strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=config["num-server-rounds"])
"""


@pytest.fixture
def apps() -> Iterator[Any]:
    """Import the app as Flower does, from its folder."""
    sys.path.insert(0, str(EXAMPLE))
    from digits_app import client_app, server_app

    yield client_app.app, server_app.app
    sys.path.remove(str(EXAMPLE))


def plain(text: str) -> str:
    return re.sub(r"^ +", "", text, flags=re.MULTILINE)


def test_the_readme_shows_the_code() -> None:
    code = "".join(plain(source) for source in SOURCES.values())
    blocks = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        if block == BEFORE:  # that is: without the wrappers
            assert all(line in code for line in block.splitlines())
        else:
            assert plain(block) in code


def test_the_client_knows_nothing_of_the_audit() -> None:
    for name in ("client_app.py", "task.py"):
        assert not re.search(r"fl_sim|attacks|defenses", SOURCES[name])


@pytest.mark.usefixtures("moves_generators")  # as a user's app does
@pytest.mark.parametrize(
    ("optimizer", "lr", "statuses", "reasons"),
    [
        (
            "adam",
            0.001,
            {"NOT_APPLICABLE": 12},
            {"Adam divides each entry by its own history: 7 steps leave neither a gradient"},
        ),
        (
            "sgd",
            0.01,
            {"NOT_APPLICABLE": 8, "NOT_IDENTIFIABLE": 4},
            {"the update sums 7 local steps", "(batch norm) ran in train mode", "labels are hard"},
        ),
    ],
)
def test_it_trains_and_nothing_is_lost(
    optimizer: str,
    lr: float,
    statuses: dict[str, int],
    reasons: set[str],
    apps: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="flwr")
    client, server = apps
    out = tmp_path / "audit"
    config = {**CONFIG, "optimizer": optimizer, "lr": lr, "audit-out": str(out)}
    server(LocalGrid(client, 2, config), Context(1, 0, {}, RecordDict(), config))
    records = [json.loads(line) for line in (out / "leakage.jsonl").read_text().splitlines()]
    assert [(r["round"], r["client"]) for r in records] == [
        (server_round, client) for server_round in (1, 2) for client in (1, 2) for _ in range(3)
    ]
    assert Counter(record["label_status"] for record in records) == statuses
    for reason in reasons:
        assert any(reason in record["label_reason"] for record in records)
    messages = [record.getMessage() for record in caplog.records]
    assert not [message for message in messages if "left out" in message]
    assert sum("Received 2 results and 0 failures" in message for message in messages) == 4
    page = build_report(out).read_text()
    assert headline(out) in messages
    assert headline(out) in html.unescape(page)
    assert "no sign of safety" in headline(out)
    assert ("Classes counted" in page) == (optimizer == "sgd")


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(1200)
def test_it_runs_on_flowers_own_runtime(tmp_path: Path) -> None:
    folder = tmp_path / "flower"
    (folder / "flwr").mkdir(parents=True)
    environment = simulation_ray._environment(folder, simulation_ray._free_port())
    root = str(EXAMPLE.parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    out = tmp_path / "audit"
    command = [Path(sysconfig.get_path("scripts")) / "flwr", "run", str(EXAMPLE), "--stream"]
    command += ["--run-config", f'audit-out="{out}"']
    with stopped_at_exit(folder, environment) as start:
        start(list(map(str, command)), log=tmp_path / "log").wait(600)
    log = (tmp_path / "log").read_text()
    records = [json.loads(line) for line in (out / "leakage.jsonl").read_text().splitlines()]
    assert len(records) == 2 * 2 * 3, log
    assert "fl-sim report" in log
