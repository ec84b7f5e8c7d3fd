"""Runs and sweeps as data frames."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

import fl_sim
from fl_sim.errors import UserError
from fl_sim.leakage.records import LeakageRecord
from fl_sim.results import frames
from fl_sim.results.run_result import RunResult
from fl_sim.results.sweep_result import SweepResult
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def loaded(run_folder: Path) -> RunResult:
    result = fl_sim.load(run_folder)
    assert isinstance(result, RunResult)
    return result


@pytest.fixture
def swept(sweep_folder: Path) -> SweepResult:
    result = fl_sim.load(str(sweep_folder))
    assert isinstance(result, SweepResult)
    return result


def test_frames_hold_what_the_files_hold(loaded: RunResult, run_folder: Path) -> None:
    for frame, name in ((loaded.leakage, "leakage"), (loaded.rounds, "rounds")):
        expected = lines(run_folder / f"{name}.jsonl")
        found = [
            {key: None if pd.isna(value) else value for key, value in row.items()}
            for row in frame.to_dict("records")
        ]
        assert [{k: one[k] for k in was} for one, was in zip(found, expected, strict=True)] == (
            expected
        )


def test_columns_have_the_same_types_whatever_was_recorded(loaded: RunResult) -> None:
    empty = frames.leakage_frame([])
    assert list(empty.columns) == list(LeakageRecord.__dataclass_fields__)
    assert empty.dtypes.to_dict() == loaded.leakage.dtypes.to_dict()
    assert empty["round"].dtype == "Int64"
    assert empty["label_top1"].dtype == "boolean"


def test_a_run_knows_its_scenario_and_its_attacks(loaded: RunResult, tiny: Tiny) -> None:
    assert loaded.scenario == tiny()
    (row,) = loaded.attacks.to_dict("records")
    assert row["status"] == "finished"
    assert row["seed"] == 3
    assert row["labels_right"] == 1.0
    assert row["examples"] == len(loaded.leakage)
    assert row["accuracy"] == loaded.rounds["accuracy"].iloc[-1]


def test_run_returns_what_load_reads(tiny: Tiny, tmp_path: Path, loaded: RunResult) -> None:
    result = fl_sim.run(tiny(), tmp_path / "run")
    timeless = [name for name in result.leakage if not str(name).endswith("seconds")]
    pd.testing.assert_frame_equal(result.leakage[timeless], loaded.leakage[timeless])
    again = fl_sim.run(tiny("rounds=4"), tmp_path / "run", resume=True)
    assert again.rounds["round"].tolist() == [0, 1, 2, 3, 4]
    assert result.report() == tmp_path / "run" / "report.html"


def test_without_a_folder_a_run_goes_where_fl_sim_run_puts_it(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fl_sim.run(tiny("rounds=1")).path == Path("runs/tiny-1")


def test_a_sweeps_frames_begin_with_what_varies(swept: SweepResult) -> None:
    for frame in (swept.leakage, swept.rounds):
        assert list(frame.columns[:4]) == ["run", "client.lr", "defense", "seed"]
        assert frame["run"].nunique() == 6
        assert set(frame["client.lr"]) == {0.05, 0.1}
        assert set(frame["defense"]) == {"[]", '[{"name": "label-smoothing"}]'}
    of_one = swept.leakage[swept.leakage["run"] == "cell-3-seed-3"]
    assert of_one["defenses"].unique().tolist() == ["label-smoothing"]
    assert len(of_one) == 9


def test_the_tidy_table_has_every_run(swept: SweepResult) -> None:
    runs = swept.runs
    assert runs["run"].is_unique
    assert runs["status"].tolist() == ["finished"] * 6 + ["failed", "unfinished"]
    assert runs["sentence"].dropna().tolist() == ["it <failed>"]
    assert runs["labels_right"].notna().sum() == 6
    assert swept.headline == "6 of 8 runs finished, in 4 cells; 1 failed; 1 to do."


def test_cells_are_means_over_their_finished_runs(swept: SweepResult) -> None:
    cells, runs = swept.cells, swept.runs
    accuracy = cells[cells["measure"] == "accuracy"].set_index("cell")
    assert accuracy["runs"].tolist() == [2, 2, 1, 1]
    expected = runs[runs["status"] == "finished"].groupby("cell")["accuracy"].mean()
    assert accuracy["mean"].tolist() == pytest.approx(expected.tolist())
    assert accuracy["low"].isna().tolist() == [False, False, True, True]  # a single run tells none


def test_a_sweep_knows_its_scenario(swept: SweepResult, tiny: Tiny) -> None:
    assert swept.scenario == tiny()


def test_csv_says_what_the_frames_say(
    loaded: RunResult, swept: SweepResult, tmp_path: Path
) -> None:
    assert [p.name for p in loaded.to_csv(tmp_path / "run")] == [
        "leakage.csv",
        "rounds.csv",
        "attacks.csv",
    ]
    written = swept.to_csv(tmp_path / "sweep")
    assert [p.stem for p in written] == ["leakage", "rounds", "runs", "cells"]
    back = pd.read_csv(tmp_path / "sweep" / "leakage.csv")
    assert back["label_linf"].tolist() == swept.leakage["label_linf"].tolist()


def test_parquet_keeps_the_types(loaded: RunResult, swept: SweepResult, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for result in (loaded, swept):
        for path in result.to_parquet(tmp_path / type(result).__name__):
            frame = getattr(result, path.stem)
            assert len(pd.read_parquet(path)) == len(frame)
    back = pd.read_parquet(tmp_path / "RunResult" / "leakage.parquet")
    pd.testing.assert_frame_equal(back, loaded.leakage)


def test_parquet_without_pyarrow_is_one_sentence(
    loaded: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "find_spec", lambda name: None)
    assert importlib.util.find_spec("pandas")
    with pytest.raises(UserError, match=r"needs the package pyarrow: pip install 'fl-sim\[parq"):
        loaded.to_parquet(tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Tags(HTMLParser):
    """Collects what a piece of HTML is made of."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        """Note a tag; none here has an attribute, so none has a script."""
        assert not attrs
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        """Check that tags close in order."""
        assert self.open.pop() == tag


def test_a_notebook_shows_a_headline_and_a_table(loaded: RunResult, swept: SweepResult) -> None:
    for result in (loaded, swept):
        html = result._repr_html_()
        tags = Tags(html)
        assert not tags.open
        assert tags.seen <= {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}
        assert result.headline in html
        assert str(result.path) in html
        assert result.headline in repr(result)


def test_text_of_others_is_escaped(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)</script>"
    shutil.copytree(run_folder, folder)
    assert "<script>" not in fl_sim.load(folder)._repr_html_()


def test_what_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="doesn't exist or isn't a folder"):
        fl_sim.load(tmp_path / "none")
    with pytest.raises(UserError, match=r"is not a run folder: it has no scenario.json"):
        fl_sim.load(tmp_path)
