"""The page's headline, the terminal's line and the records tell one story, whatever leaks."""

from __future__ import annotations

import html
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import scenarios
from fl_sim import Scenario, run_and_report
from fl_sim.leakage.records import read_lines
from fl_sim.report.meaning import commands
from fl_sim.terminal.display import print_outcome

SHIPPED = Path(next(iter(scenarios.__path__)))
COUNTS = [
    {"label": name, "attacker": "unaware", "rounds": "all", "clients": "all"}
    for name in ("llg", "label-mass")
]
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "label smoothing": ("label-smoothing", {}),
    "noise in which nothing is vouched for": ("dp-noise", {}),
    "counts of batches of 32": (
        "baseline",
        {"client.batch_size": 32, "data.clients": 10, "attack": COUNTS},
    ),
    "nothing applies": ("baseline", {"client.local_steps": 3, "model.name": "convnet"}),
    "a batch with partial success": ("batch", {"attack.0.label": "third_party:HalfSure"}),
}


@pytest.fixture(scope="module", params=list(RUNS))
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_file: Path
) -> tuple[str, Path]:
    base, changes = RUNS[request.param]
    few = {"rounds": 1, "data.clients": 3, "data.test_examples": 50}
    scenario = Scenario.load(SHIPPED / f"{base}.toml").with_changes({**few, **changes})
    folder = tmp_path_factory.mktemp("run") / "run"
    run_and_report(scenario, folder)
    return request.param, folder


def plain(page: str) -> str:
    text = re.sub(r"<[^>]+>", " ", page.partition("</style>")[2])
    return re.sub(r"\s+", " ", html.unescape(text))


def test_three_tell_one_story(run: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    name, folder = run
    page = (folder / "report.html").read_text(encoding="utf-8")
    [found] = re.findall(r'<p class="outcome">(.*?)</p>', page)
    first = re.sub(r"\s+", " ", html.unescape(found))
    print_outcome(folder)
    assert first in re.sub(r"\s+", " ", capsys.readouterr().out)
    records = read_lines(folder / "leakage.jsonl")
    claims = sum(r["label_status"] == "RECOVERED" for r in records)
    right = sum((r["label_linf"] or 0) < 0.01 for r in records if r["label_linf"] is not None)
    if name == "label smoothing":
        assert (claims, right) == (3, 3)
        assert "the soft label of 3 of 3 examples, as the judge knows" in first
        assert "it vouches for 3 images and 3 labels." in first
    elif name.startswith("noise"):
        assert claims == 0
        assert "as the judge knows" in first
        assert "it vouches for none of it" in first
        assert "more is right than the attacker can know" in plain(page).lower()
    elif name.startswith("counts"):
        assert {r["label_status"] for r in records} == {"NOT_IDENTIFIABLE"}
        nearer = sum(r["mass_tv"] < r["mass_tv_chance"] for r in records if r["attack"] == 1)
        assert f"the class mass of {nearer} of 10 updates" in first
        assert "can’t vouch for a count" in first
        assert "Class mass of updates" in plain(page)
        assert page.count("full height") == 12  # of 20
    elif name == "nothing applies":
        assert {r["label_status"] for r in records} == {"NOT_APPLICABLE"}
        assert first.startswith("No attack applies to these updates, which is no sign of safety: ")
        assert records[0]["label_reason"] in first
    else:
        assert 0 < claims < len(records)
        assert f"{claims} labels" in first


@pytest.mark.parametrize(
    "base", ["label-smoothing", "dp-noise", "batch-of-digits", "mixup", "fedavg"]
)
def test_what_to_try_next_can_be_tried(base: str) -> None:
    scenario = Scenario.load(SHIPPED / f"{base}.toml")
    found = commands(scenario.model_dump())
    assert len(found) >= 2
    for command, what in found:
        start, change = command.split(" --set ")
        assert start == f"fl-sim run {base}"
        assert what
        changed = Scenario.load(SHIPPED / f"{base}.toml", shlex.split(change))
        assert changed != scenario
