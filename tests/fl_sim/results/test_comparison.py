"""What runs are compared by, and how sure the means are."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_sim.results.comparison import Comparison
from fl_sim.results.measures import by_round, of_attacks, of_run
from fl_sim.results.spread import Spread, spread
from fl_sim.results.varied import described, short_names, shown, varied

FlSim = Callable[..., Any]


def line(example: int, **values: Any) -> dict[str, Any]:
    """Return a line of `leakage.jsonl` of one attack on one client."""
    place = {"round": 1, "client": 0, "attack": 0, "example": example}
    return {**place, "label_attack": "soft-label", "image_attack": "analytic", **values}


def test_shares_are_of_fixed_levels() -> None:
    """The page of a run would call these images identical to the eye; a comparison counts."""
    psnrs = [60.0, 55.0, 40.0, 25.0, 12.0, None]
    right = {"image_certainty": "guess", "label_certainty": "guess", "label_top1": True}
    lines = [line(n, psnr_db=psnr, label_linf=1e-3, **right) for n, psnr in enumerate(psnrs)]
    values = of_attacks(lines)[0]
    assert values["images_recognisable"] == pytest.approx(4 / 6)
    assert values["images_identical"] == pytest.approx(2 / 6)
    assert values["labels_right"] == 1.0
    assert values["examples"] == 6
    assert values["updates"] == 1
    assert values["masses_right"] is None


def test_what_counts_classes_tried_no_label() -> None:
    count = line(0, label_status="NOT_IDENTIFIABLE", mass_tv=0.1, mass_tv_chance=0.2)
    assert of_attacks([count])[0]["labels_tried"] is None
    states = ("RECOVERED", "NOT_CONVERGED", "NOT_APPLICABLE", "FAILED")
    lines = [line(n, label_status=state, image_status=state) for n, state in enumerate(states)]
    values = of_attacks(lines)[0]
    assert (values["labels_tried"], values["images_tried"]) == (0.5, 0.5)


def test_a_line_without_an_example_counts_for_its_whole_update() -> None:
    failed = line(0, round=2, label_status="FAILED", examples=3) | {"example": None}
    lines = [line(0, label_linf=1e-3, label_certainty="guess"), failed]
    assert of_attacks(lines)[0]["labels_right"] == 0.25
    rounds = by_round(lines)
    assert rounds[0, 1]["labels_right"] == 1.0
    assert rounds[0, 2]["examples"] == 3


def test_a_run_without_a_round_has_no_number() -> None:
    assert set(of_run([]).values()) == {None}


def test_students_interval_covers_the_mean_as_often_as_it_says() -> None:
    draw = random.Random(0)
    covered = 0
    for _ in range(2000):
        found = spread([draw.gauss(3.0, 2.0) for _ in range(3)])
        assert found is not None and found.low is not None and found.high is not None
        covered += found.low <= 3.0 <= found.high
    assert 0.935 <= covered / 2000 <= 0.965  # three standard errors of 0.95


def test_a_shares_interval_covers_it_at_least_as_often() -> None:
    """Of runs that differ, and of runs that don't: Wilson's alone fails the first."""
    draw = random.Random(0)
    for scatter in (0.0, 0.3):
        covered = 0
        for _ in range(400):
            shares = []
            for _ in range(3):
                p = min(max(0.8 + draw.uniform(-scatter, scatter) * 0.6, 0.0), 1.0)
                shares.append(sum(draw.random() < p for _ in range(20)) / 20)
            found = spread(shares, is_share=True, examples=[20, 20, 20])
            assert found is not None and found.low is not None and found.high is not None
            covered += found.low <= 0.8 <= found.high
        assert covered / 400 >= 0.93


def test_runs_that_agree_are_not_certain() -> None:
    found = spread([1.0, 1.0, 1.0], is_share=True, examples=[4, 4, 4])
    assert found == Spread(3, 1.0, 1.0, pytest.approx(0.757, abs=1e-3), 1.0)  # Wilson, 12 of 12


def test_a_single_run_has_an_interval_only_where_something_is_counted() -> None:
    assert spread([7.0]) == Spread(1, 7.0, 7.0, None, None)
    alone = spread([0.5], is_share=True, examples=[10])
    assert alone is not None and alone.low == pytest.approx(0.237, abs=1e-3)
    assert spread([None, None]) is None
    assert spread([None, 7.0]) == Spread(1, 7.0, 7.0, None, None)


def test_an_interval_of_a_share_lies_between_0_and_1() -> None:
    found = spread([0.0, 0.1, 0.9], is_share=True)
    assert found is not None
    assert (found.low, found.high) == (0.0, 1.0)


def test_keys_that_differ_are_found() -> None:
    one = {"seed": 0, "name": "a", "client": {"lr": 0.1}, "defense": [{"name": "mixup"}]}
    other = {"seed": 1, "name": "b", "client": {"lr": 0.2}, "defense": [{"name": "mixup", "a": 1}]}
    keys, values = varied([one, other])
    assert keys == ("client.lr", "defense.0.a")
    assert values == [
        {"client.lr": 0.1, "defense.0.a": None},
        {"client.lr": 0.2, "defense.0.a": 1},
    ]


def test_other_defenses_are_compared_as_wholes() -> None:
    defenses: list[list[dict[str, Any]]] = [[], [{"name": "mixup", "alpha": 1.0}]]
    keys, values = varied([{"defense": defense} for defense in defenses])
    assert keys == ("defense",)
    assert [described(one) for one in values] == ["defense none", "defense mixup (alpha 1.0)"]


def test_names_are_as_short_as_they_can_be() -> None:
    keys = ["defense.0.smoothing", "defense.1.smoothing", "client.lr"]
    assert list(short_names(keys).values()) == ["0.smoothing", "1.smoothing", "lr"]
    assert shown([0.0, 0.5]) == "[0.0, 0.5]"
    assert shown(True) == "true"


def test_runs_that_differ_in_the_seed_alone_are_one_cell(sweep_folder: Path) -> None:
    runs = [sweep_folder / "runs" / f"cell-{n}-seed-{seed}" for n, seed in ((0, 3), (0, 4), (2, 3))]
    comparison = Comparison.of_runs(runs)
    assert comparison.keys == ("client.lr",)
    assert [len(comparison.of_cell(cell)) for cell in range(2)] == [2, 1]
    assert comparison.attacks == {0: "third_party:Formula + third_party:FormulaImage (unaware)"}


def test_a_sweep_stands_for_its_finished_runs(sweep_folder: Path) -> None:
    assert len(Comparison.of_runs([sweep_folder]).runs) == 6


def test_compare_prints_a_table_and_a_page(
    fl_sim: FlSim, sweep_folder: Path, tmp_path: Path
) -> None:
    runs = [sweep_folder / "runs" / f"cell-{n}-seed-3" for n in range(4)]
    ended = fl_sim("compare", *runs, "--out", tmp_path / "page")
    assert (ended.status, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-1] == str(tmp_path / "page" / "report.html")
    assert "label-smoothing" in ended.stdout
    assert (tmp_path / "page" / "table.csv").read_text().count("\n") == 5


@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_run_that_is_none_is_one_sentence(
    fl_sim: FlSim, run_folder: Path, tmp_path: Path, command: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(run_folder, broken)
    (broken / "leakage.jsonl").write_text("nonsense\n{}\n")
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "sweep.json").write_text(json.dumps({"kind": "sweep"}))
    cases = [
        (tmp_path / "none", "doesn't exist or isn't a folder"),
        (tmp_path, "is not a run folder: it has no scenario.json"),
        (broken, "leakage.jsonl: line 1 must be a JSON object"),
        (sweep, "sweep.json isn't a sweep's description"),
    ]
    for folder, sentence in cases:
        others = [run_folder, "--out", tmp_path / "page"] if command == "compare" else []
        ended = fl_sim(command, folder, *others)
        assert ended.status == 2, ended.stderr
        assert ended.stdout == ""
        assert ended.stderr.count("\n") == 1
        assert sentence in ended.stderr
        assert not (tmp_path / "page").exists()


def test_a_run_is_compared_with_another_one(fl_sim: FlSim, run_folder: Path) -> None:
    assert "two runs or more, found 1" in fl_sim("compare", run_folder).stderr
    assert "comes twice: name each run once" in fl_sim("compare", run_folder, run_folder).stderr
