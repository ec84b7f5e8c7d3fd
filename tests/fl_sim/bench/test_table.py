"""A benchmark's table can be read and repeated."""

from __future__ import annotations

import csv
from pathlib import Path

from fl_sim.bench.table import write_table


def test_rows_become_markdown_and_csv(tmp_path: Path) -> None:
    rows = [{"network": "a", "found": "3 of 4"}, {"network": "b", "found": 1.5}]
    notes = ("Published: 2 of 4.",)
    folder = tmp_path / "results"
    text = write_table("x", "What was found", "do it", 7, rows, notes=notes, folder=folder)
    assert text == (folder / "x.md").read_text()
    assert text.startswith("# What was found\n\n`do it`, seed 7; fl-sim ")
    assert "Published: 2 of 4." in text
    assert "| network | found |\n|---|---|\n| a | 3 of 4 |\n| b | 1.5 |\n" in text
    with (folder / "x.csv").open() as file:
        read = list(csv.DictReader(file))
    assert read == [{"network": "a", "found": "3 of 4"}, {"network": "b", "found": "1.5"}]
