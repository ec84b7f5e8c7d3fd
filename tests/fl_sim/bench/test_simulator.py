"""`fl-sim bench simulator`: small parts of its benchmarks run; all benchmarks have one shape."""

from __future__ import annotations

import importlib
import inspect
import itertools
from pathlib import Path

import pytest

from fl_sim.bench import audit_overhead, costs, engines, leakage, leakage_noise
from fl_sim.bench.run import SUITES

RESULTS = Path(__file__).parents[3] / "docs" / "results"
BENCHMARKS = [(suite, name) for suite, names in SUITES.items() for name in names]


@pytest.mark.parametrize(("suite", "name"), BENCHMARKS)
def test_a_benchmark_has_a_title_notes_and_rows(suite: str, name: str) -> None:
    module = importlib.import_module(f"fl_sim.bench.{name}")
    assert isinstance(module.TITLE, str)
    assert isinstance(module.NOTES, tuple)
    assert list(inspect.signature(module.rows).parameters) == ["quick", "seed"]
    # What else the runner calls where a module has it, with one argument.
    for hook in ("summary", "figure", "gallery"):
        if hasattr(module, hook):
            assert len(inspect.signature(getattr(module, hook)).parameters) == 1, hook


@pytest.mark.parametrize("table", sorted(RESULTS.glob("*.md")), ids=lambda path: path.stem)
def test_a_result_names_the_command_that_repeats_it(table: Path) -> None:
    (suite,) = (suite for suite, name in BENCHMARKS if name == table.stem)
    command = f"`fl-sim bench {suite} --only {table.stem}`, seed "
    assert table.read_text("utf-8").split("\n")[2].startswith(command)


def test_the_audit_is_timed_beside_runs_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_overhead, "ROUNDS", 1)
    row = next(audit_overhead.rows(quick=True, seed=0))
    assert row["rounds of each"] == 1
    with_audit, without = float(str(row["with"])), float(str(row["seconds without"]))
    # Both are shown to a millisecond, of a tenth of a second and more.
    assert float(str(row["ratio of medians"])) == pytest.approx(with_audit / without, abs=0.03)


def test_an_engines_run_is_its_start_and_its_rounds() -> None:
    row = next(engines.rows(quick=True, seed=0))
    assert (row["engine"], row["clients"], row["runs"], row["rounds"]) == ("`local`", 2, 1, 3)
    start, first, later, whole = (
        float(str(row[key])) for key in ("start and end", "first round", "later round", "whole run")
    )
    assert whole == pytest.approx(start + first + 2 * later, abs=0.12)  # two are shown to 0.1


def test_clear_updates_leak_everything() -> None:
    found = list(itertools.islice(leakage.rows(quick=True, seed=0), 2))
    assert [row["augmentation"] for row in found] == ["smoothing 0.1", "mixup"]
    for row in found:
        assert row["records"] == row["recovered"] == row["L∞ < 1e-3"] == row["right type"] == 100
        assert row["images recovered"] == 100
        assert row["false accepts"] == row["of these under 50 dB"] == 0


def test_noise_hides_more_from_an_attacker_who_does_not_know_it() -> None:
    found = list(itertools.islice(leakage_noise.rows(quick=True, seed=0), 12))
    recovered = {str(row["setting"]).rpartition(", ")[2]: 0 for row in found}
    for row in found:
        recovered[str(row["setting"]).rpartition(", ")[2]] += int(str(row["recovered"]))
        assert (row["records"], row["false accepts"]) == (10, 0)
    assert 0 < recovered["unaware"] < recovered["aware"]  # of 60 each


def test_costs_are_of_rounds_and_of_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "ROUNDS", costs.ROUNDS[:1])
    found = list(costs.rows(quick=True, seed=0))
    assert [(row["what"], row["batch"], row["repetitions"]) for row in found] == [
        ("a client's round", 1, 5),
        ("scoring an answer", 1, 20),
        ("scoring an answer", 16, 20),
    ]
    for row in found:
        assert 0 < float(str(row["median ms"])) <= float(str(row["95 % ms"]))
