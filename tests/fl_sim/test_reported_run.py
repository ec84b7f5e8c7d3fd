"""A run and its report in one call."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import fl_sim
from fl_sim import run_and_report
from fl_sim.errors import NothingAccepted, UserError
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]


def test_a_run_ends_with_its_report(tiny: Tiny, tmp_path: Path) -> None:
    told: list[tuple[int, int, int]] = []
    out = tmp_path / "run"
    report = run_and_report(tiny("rounds=1"), out, on_progress=lambda *what: told.append(what))
    assert report == out / "report.html"
    assert "The server recovered" in report.read_text(encoding="utf-8")
    assert told == [(1, done, 3) for done in (1, 2, 3)]
    again = run_and_report(tiny("rounds=1"), out, resume=True)
    assert again == report
    assert {"run", "run_and_report"} <= set(fl_sim.__all__)


def test_a_run_that_lost_all_replies_gets_its_report_first(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(NothingAccepted, match="no reply was accepted in any round") as error:
        run_and_report(tiny('defense=[{name="third_party:Spoils"}]'), tmp_path)
    assert (error.value.folder, error.value.report) == (tmp_path, tmp_path / "report.html")
    assert error.value.report is not None
    assert "No update could be attacked" in error.value.report.read_text(encoding="utf-8")


def test_a_mistake_leaves_no_report(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "scenario.json").write_text(json.dumps({"digest": "other", "scenario": {}}))
    with pytest.raises(UserError, match="holds another run"):
        run_and_report(tiny(), tmp_path)
    assert not (tmp_path / "report.html").exists()
