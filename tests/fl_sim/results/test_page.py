"""The comparison page: what it shows, and that it stands alone."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_sim.report.comparison import build_comparison, outcome
from fl_sim.report.comparison_figures import draw_curves
from fl_sim.report.heat import heat_maps
from fl_sim.results.comparison import ComparedRun, Comparison
from fl_sim.results.display import columns_of
from fl_sim.results.measures import OF_ATTACKS, OF_RUNS


@pytest.fixture(scope="module")
def folder(sweep_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the page once."""
    out = tmp_path_factory.mktemp("page")
    build_comparison(Comparison.of_sweep(sweep_folder), out)
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    """Return the page's text."""
    return (folder / "report.html").read_text()


def test_the_page_stands_alone(page: str) -> None:
    assert not re.search(r"<script|<link|https?://|url\((?!#)", page)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len({*ids})
    assert {uri.split(",")[0] for uri in re.findall(r'src="([^"]*)"', page)} == {
        "data:image/png;base64"
    }


def test_what_failed_and_what_is_owed_is_said(page: str) -> None:
    assert "cell-2-seed-4 failed: it &lt;failed&gt;" in page
    assert "Not finished: cell-3-seed-4." in page
    assert "6 of 8 runs finished, in 4 cells; 1 failed; 1 to do." in page
    assert "Varied: lr, defense." in page


def test_figures_and_table_are_beside_it(folder: Path) -> None:
    names = {path.name for path in (folder / "figures").iterdir()}
    assert {"labels_right-0-0.png", "labels_right-0-1.png", "accuracy-runs-0.png"} <= names
    assert (folder / "table.csv").read_text().startswith("run,cell,client.lr,defense,seed,status")


def test_every_cell_shows_reconstructions_beside_the_truth(page: str) -> None:
    captions = re.findall(r"<figcaption><strong>(lr [^<]*)</strong>", page)
    assert captions == [
        f"lr {lr}, defense {defense}"
        for lr in ("0.05", "0.1")
        for defense in ("none", "label-smoothing")
    ]
    assert page.count('alt="Recovered image') == page.count('alt="True image') == 16


def numbered(cells: list[dict[str, object]], shares: list[float | None]) -> Comparison:
    """Return a comparison of a run for each cell, of which one share is known."""
    runs = []
    for cell, (values, share) in enumerate(zip(cells, shares, strict=True)):
        numbers: dict[str, float | None] = {"labels_right": share, "examples": 10, "updates": 10}
        known = {measure.name: numbers.get(measure.name) for measure in OF_ATTACKS} | numbers
        empty: dict[str, float | None] = {measure.name: None for measure in OF_RUNS}
        runs.append(
            ComparedRun(
                f"cell-{cell}",
                Path("nowhere"),
                cell,
                0,
                values,
                titles={0: "soft-label (unaware)"},
                attacks={0: known},
                numbers={**empty, "rounds": 1.0},
                rounds={(0, at): known for at in (1, 2)},
            )
        )
    return Comparison("made up", tuple(cells[0]), cells, runs)


GRID: list[dict[str, object]] = [{"client.lr": lr, "rounds": n} for lr in (1, 2) for n in (3, 4, 5)]


def test_a_heat_map_has_the_first_key_down_and_the_second_across() -> None:
    comparison = numbered(GRID, [0.0, 0.1, 0.2, 0.3, 1.0, None])
    (found,) = heat_maps(comparison, columns_of(comparison))
    assert (found.row_key, found.column_key, found.columns) == ("lr", "rounds", ["3", "4", "5"])
    heats = [(name, [square.heat for square in squares]) for name, squares in found.rows]
    assert heats == [("1", [0.0, 0.1, 0.2]), ("2", [0.3, 1.0, 0.0])]
    texts = [square.text for _, squares in found.rows for square in squares]
    assert texts == ["0\u00a0%", "10\u00a0%", "20\u00a0%", "30\u00a0%", "100\u00a0%", "–"]
    assert [square.is_strong for square in found.rows[1][1]] == [False, True, False]


def test_of_three_keys_there_is_a_map_for_each_value_of_the_first() -> None:
    cells = [{"seedling": s, **cell} for s in ("a", "b") for cell in GRID]
    comparison = numbered(cells, [0.5] * 12)
    maps = heat_maps(comparison, columns_of(comparison))
    assert [one.title for one in maps] == ["Labels right (seedling a)", "Labels right (seedling b)"]


def test_cells_that_fill_no_grid_have_no_map_and_one_figure() -> None:
    comparison = numbered([GRID[0], GRID[4]], [0.0, 1.0])
    assert heat_maps(comparison, columns_of(comparison)) == []
    (drawing,) = draw_curves(comparison)
    assert "lr 1, rounds 3: 0 in round 1, 0 in round 2" in drawing.alt
    assert "lr 2, rounds 4: 1 in round 1, 1 in round 2" in drawing.alt


def test_a_grid_has_a_figure_for_each_value_of_its_first_key() -> None:
    drawings = draw_curves(numbered(GRID, [0.5] * 6))
    assert [one.title for one in drawings] == ["Labels right (lr 1)", "Labels right (lr 2)"]


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        ([0.0, 1.0], "Labels right: from 0 % with lr 1, rounds 3 to 100 % with lr 2, rounds 4."),
        ([0.5, 0.5], "Labels right: 50 % in every cell."),
        ([None, None], "There is no number to compare yet."),
    ],
)
def test_the_headline_says_between_what_it_lies(shares: list[float | None], sentence: str) -> None:
    said = outcome(numbered([GRID[0], GRID[4]], shares))
    assert said.replace("\u00a0", " ") == sentence


def test_fl_sim_report_builds_it_again_and_says_that_a_run_failed(
    fl_sim: Callable[..., Any], sweep_folder: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(sweep_folder, moved)
    ended = fl_sim("report", moved)
    assert (ended.status, ended.stderr) == (1, "")
    assert ended.stdout.splitlines()[-1] == str(moved / "report.html")
    assert (moved / "table.csv").exists()
