"""What trackers are told, and that one that raises costs a warning."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from attacks.registry import Entry
from fl_sim import TRACKERS
from fl_sim.errors import UserError
from fl_sim.flower.run import run
from fl_sim.scenario import Scenario
from fl_sim.trackers import TrackedRun, Tracker
from fl_sim.trackers.feed import Feed, build_trackers

Tiny = Callable[..., Scenario]
OutcomeOf = Callable[[Path], dict[str, str | bytes]]


class Writes(Tracker):
    """Keeps what it is told."""

    told: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, *, label: str = "plain") -> None:
        self._label = label

    def start(self, run: TrackedRun) -> None:
        """Keep it."""
        self.told.append(("start", self._label, run.path.name, run.committed))

    def log_round(self, server_round: int, numbers: Mapping[str, float]) -> None:
        """Keep it."""
        self.told.append(("round", server_round, dict(numbers)))

    def finish(self, files: Sequence[Path]) -> None:
        """Keep it."""
        self.told.append(("finish", [path.name for path in files]))


class Raises(Tracker):
    """Raises in a hook."""

    def __init__(self, *, hook: str) -> None:
        setattr(self, hook, self._raise)

    def _raise(self, *_: object) -> None:
        raise OSError("no connection")


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register both as a third party's entry points do."""
    entries = {name: Entry(f"{__name__}:{name}", "of a test") for name in ("Writes", "Raises")}
    monkeypatch.setitem(sys.modules, __name__, _This)
    monkeypatch.setitem(TRACKERS.__dict__, "_plugins", entries)
    Writes.told.clear()


class _This:
    """Stands for this module, which pytest imports under no name that can be imported."""

    Writes, Raises = Writes, Raises


def rounds() -> dict[int, dict[str, float]]:
    return {told[1]: told[2] for told in Writes.told if told[0] == "round"}


def test_a_tracker_hears_of_each_round_and_of_the_end(tiny: Tiny, tmp_path: Path) -> None:
    folder = run(tiny('tracker=[{name="Writes", label="mine"}]'), tmp_path / "run")
    assert Writes.told[0] == ("start", "mine", "run", None)
    files = ["report.html", "scenario.json", "leakage.jsonl", "rounds.jsonl"]
    assert Writes.told[-1] == ("finish", files)
    assert [told[1] for told in Writes.told if told[0] == "round"] == [0, 1, 2, 3]
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        told = rounds()[line["round"]]
        assert told["accuracy"] == line["accuracy"]
        assert "epsilon" not in told  # none is known
        assert ("attack.0/labels_right" in told) is (line["round"] > 0)
    assert rounds()[2]["attack.0/labels_right"] == 1.0
    assert rounds()[2]["attack.0/examples"] == 3.0


def test_a_run_that_goes_on_tells_its_last_round_again(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny("rounds=2"), tmp_path / "run")
    run(tiny("rounds=3", 'tracker=[{name="Writes"}]'), tmp_path / "run", resume=True)
    assert Writes.told[0] == ("start", "plain", "run", 2)
    assert list(rounds()) == [2, 3]
    assert rounds()[2]["attack.0/examples"] == 3.0


@pytest.mark.parametrize("hook", ["start", "log_round", "finish"])
def test_a_tracker_that_raises_costs_a_warning(
    tiny: Tiny, tmp_path: Path, outcome_of: OutcomeOf, caplog: pytest.LogCaptureFixture, hook: str
) -> None:
    scenario = tiny(f'tracker=[{{name="Raises", hook="{hook}"}}, {{name="Writes"}}]', "rounds=2")
    with caplog.at_level(logging.WARNING, "fl_sim.trackers"):
        folder = run(scenario, tmp_path / "tracked")
    (warning,) = [r.getMessage() for r in caplog.records if r.name.startswith("fl_sim.trackers")]
    assert warning == (
        "tracker 'Raises' raised OSError and is told no more of this run: no connection"
    )
    assert list(rounds()) == [0, 1, 2]
    assert Writes.told[-1][0] == "finish"
    plain = run(tiny("rounds=2"), tmp_path / "plain")
    assert outcome_of(folder) == outcome_of(plain)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ('tracker=[{name="tensorbored"}]', "unknown tracker 'tensorbored'; did you mean"),
        ('tracker=[{nam="Writes"}]', "tracker.0.name: is required, found none"),
        ("tracker=Writes", r"tracker: must be tables, each headed \[\[tracker\]\], found 'Writes'"),
    ],
)
def test_a_mistake_is_found_with_the_scenario(tiny: Tiny, change: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tiny(change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ('tracker=[{name="Writes", lable="x"}]', "unknown option 'lable'; did you mean 'label'?"),
        ('tracker=[{name="Raises"}]', "hook is required"),
        ('tracker=[{name="math:sqrt"}]', "tracker 'math:sqrt'"),
        (
            'tracker=[{name="third_party:patterns"}]',
            "'third_party:patterns' must make a Tracker, found",
        ),
    ],
)
def test_an_option_is_found_before_the_folder_is_touched(
    tiny: Tiny, tmp_path: Path, change: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        run(tiny(change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in (("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")):
        monkeypatch.delitem(sys.modules, f"fl_sim.trackers.{name}", raising=False)
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=rf"needs its package: pip install 'fl-sim\[{name}\]'"):
            build_trackers([(name, {})])


def test_a_round_whose_records_land_late_is_told_again_as_a_whole(tmp_path: Path) -> None:
    told: list[tuple[int, float | None]] = []
    tracker = Tracker()
    tracker.log_round = lambda at, of: told.append((at, of.get("attack.0/labels_right")))  # type: ignore[method-assign]
    feed = Feed([("late", tracker)], tmp_path)

    def append(name: str, **line: Any) -> None:
        with (tmp_path / name).open("a") as file:
            file.write(json.dumps(line) + "\n")

    place: dict[str, Any] = {"round": 1, "attack": 0, "example": 0, "label_certainty": "guess"}
    append("leakage.jsonl", **place, client=0, label_linf=1e-3)
    append("rounds.jsonl", round=1, accuracy=0.5)
    feed.committed()
    append("leakage.jsonl", **place, client=1, label_linf=1.0)
    feed.committed()
    assert told == [(1, 1.0), (1, 0.5)]


def test_trackers_change_no_record(tiny: Tiny) -> None:
    assert tiny('tracker=[{name="Writes"}]').digest() == tiny().digest()
