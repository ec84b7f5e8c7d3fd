"""The grid of defenses: its cells, what its table comes to, and the cards that are made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defenses import DEFENSES
from fl_sim.bench import defense_grid
from fl_sim.bench.defense_cards import cards, write_cards
from fl_sim.bench.defense_frontier import draw_frontier, recommended, share_of
from fl_sim.bench.defense_grid import MNIST, PHOTOS, STRENGTHS, grid_of, rows_of
from fl_sim.flower.run import run
from fl_sim.results.comparison import Comparison
from fl_sim.scenario import Scenario
from fl_sim.sweep.folder import Ended, SweepFolder
from fl_sim.sweep.grid import Axis, Grid

Tiny = Callable[..., Scenario]
ROOT = Path(__file__).parents[3]


def names(setting: str, *, quick: bool = False) -> list[str]:
    cells = grid_of(setting, quick=quick, seed=0).cells()
    return ["+".join(stage["name"] for stage in cell["defense"]) for cell in cells]


def test_every_defense_is_in_the_grid() -> None:
    assert {*STRENGTHS} == {*DEFENSES}
    assert [name for name in names(MNIST) if not name] == [""]
    assert {*names(MNIST)} - {""} == {*STRENGTHS}
    assert {*STRENGTHS} - {*names(PHOTOS)} == {"vicinal", "soteria"}
    assert names(MNIST, quick=True) == ["", "label-smoothing", "pruning", "dp-noise"]


@pytest.mark.parametrize("setting", [MNIST, PHOTOS])
def test_every_run_is_attacked_by_both_attackers_at_the_end_too(setting: str) -> None:
    for planned in grid_of(setting, quick=False, seed=5).runs():
        twins = [(one.label, one.attacker, one.rounds) for one in planned.scenario.attack]
        last = [1, planned.scenario.rounds]
        assert {(label, who) for label, who, _ in twins} == {
            (label, who) for label in ("soft-label", "label-mass") for who in ("unaware", "aware")
        }
        assert all(rounds == last for *_, rounds in twins)
    assert {one.scenario.seed for one in grid_of(setting, quick=False, seed=5).runs()} == {5, 6, 7}


def row(defense: str, strength: str, attacker: str, **values: str) -> dict[str, str]:
    told = {"setting": MNIST, "defense": defense, "strength": strength, "attacker": attacker}
    rest = {
        "labels": "0 % (0–3)",
        "classes": "10 % (5–17)",
        "images > 20 dB": "0 % (0–3)",
        "identified": "< 0.1 % (0–3)",
        "class counts off by": "8 %",
        "a guess": "30 %",
        "accuracy": "80 % (78–82)",
        "ε": "no guarantee",
        "signal to noise": "3.0 dB",
        "bytes": "4",
        "non-zero": "5 %",
        "seconds": "1 s",
        "holds": "no",
        "flags": "",
    }
    return {**told, **rest, **values}


ROWS = [
    row("none", "–", "aware", accuracy="91 % (90–92)", labels="100 % (97–100)"),
    row("pruning", "sparsity 0.5", "unaware", holds="yes", labels="3 % (1–5)"),
    row("pruning", "sparsity 0.5", "aware", holds="yes", flags="random; aware is worse"),
    row("pruning", "sparsity 0.95", "aware", holds="weakest", accuracy="85.5 % (84–87)"),
    row("sign", "–", "aware", labels="40 % (30–50)"),
]


@pytest.mark.parametrize(
    ("text", "share"),
    [("90.5 % (86–93)", 0.905), ("< 0.1 % (0–3)", 0.001), ("100 %", 1.0), ("–", None)],
)
def test_a_share_is_read_as_the_table_writes_it(text: str, share: float | None) -> None:
    assert share_of(text) == (None if share is None else pytest.approx(share))


def test_the_weakest_that_holds_is_named_with_its_cost() -> None:
    text = recommended(ROWS)
    assert "* `pruning`, sparsity 0.95: accuracy 85.5 % (84–87), 5.5 points lower than" in text
    assert "* `sign`: none of the strengths that were tried." in text


def test_the_frontier_has_a_line_for_each_defense_and_the_stronger_attacker() -> None:
    labels, _ = draw_frontier(ROWS).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in labels.lines}
    assert lines == {
        "none": [[91.0, 100.0]],
        "pruning": [[80.0, 3.0], [85.5, 0.0]],
        "sign": [[80.0, 40.0]],
    }


def test_a_card_names_claim_worst_case_cost_and_flags(tmp_path: Path) -> None:
    defense_grid_csv = tmp_path / "defense_grid.csv"
    lines = [",".join(json.dumps(value, ensure_ascii=False) for value in r.values()) for r in ROWS]
    defense_grid_csv.write_text("\n".join([",".join(f'"{key}"' for key in ROWS[0]), *lines]))
    found = cards(tmp_path)
    assert {*found} == {*DEFENSES}
    pruning = found["pruning"]
    assert "Sparse Communication for Distributed Gradient Descent" in pruning
    assert "It claims no ε: no guarantee." in pruning
    assert "| no defense | aware | 100 % (97–100) |" in pruning
    assert "| sparsity 0.95 | 85.5 % (84–87) |" in pruning
    assert "* **aware is worse** (" in pruning
    assert "Not measured here." in found["mixup"]
    assert "It claims an ε" in found["dp-sgd"]
    write_cards(tmp_path)
    assert (tmp_path / "defenses" / "pruning.md").read_text("utf-8") == pruning


def test_the_cards_in_the_documentation_are_those_of_its_tables() -> None:
    kept = {path.stem: path.read_text("utf-8") for path in (ROOT / "docs/defenses").glob("*.md")}
    assert kept == cards(ROOT / "docs" / "results")


def test_rows_of_a_sweep_have_one_form(tiny: Tiny, tmp_path: Path) -> None:
    """Both attackers' rows, whatever attacks there were."""
    axis = Axis.parse('defense=[],[{name="label-smoothing"}]')
    grid = Grid.of(tiny("rounds=1"), [axis], zipped=False, seeds=1)
    with SweepFolder.open(tmp_path / "sweep", grid, resume=False) as folder:
        for one in grid.runs():
            run(one.scenario, folder.run_folder(one))
            folder.note(Ended(one.name, None, is_finished=True, seconds=1.0))
    found = list(rows_of("tiny", Comparison.of_sweep(tmp_path / "sweep")))
    assert len({tuple(one) for one in found}) == 1
    assert {one["attacker"] for one in found} == {"unaware", "aware"}
    assert {one["defense"] for one in found} == {"none", "label-smoothing"}
    assert all(one["ε"] == "no guarantee" for one in found)
    unaware = [one for one in found if one["attacker"] == "unaware"]
    assert all(str(one["labels"]).endswith(")") for one in unaware)


@pytest.mark.slow
def test_a_quick_grid_runs_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found: list[dict[str, Any]] = list(defense_grid.rows(quick=True, seed=0))
    cells = [name or "none" for name in names(MNIST, quick=True)]
    assert [one["defense"] for one in found[::2]] == cells
    bare = found[1]
    assert (bare["defense"], bare["attacker"], bare["holds"]) == ("none", "aware", "no")
    assert str(bare["labels"]).startswith("100 %")
    assert not list((tmp_path / "runs" / "bench").iterdir())


def test_an_interrupted_grid_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[bool] = []

    def begun(grid: Grid, out: Path, *, resume: bool) -> None:
        asked.append(resume)
        with SweepFolder.open(out, grid, resume=resume) as folder:
            folder.note(Ended("one", None, is_finished=False, seconds=0.0))
        if not resume:
            raise KeyboardInterrupt

    monkeypatch.setattr(defense_grid, "run_sweep", begun)
    with pytest.raises(KeyboardInterrupt):
        list(defense_grid.rows(quick=True, seed=0))
    assert list(defense_grid.rows(quick=True, seed=0)) == []
    assert asked == [False, True]
