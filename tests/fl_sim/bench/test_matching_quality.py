"""Gradient matching at equal iterations: the rows."""

from __future__ import annotations

from fl_sim.bench.matching_quality import rows


def test_the_exact_attack_stands_beside_searches_of_the_same_images() -> None:
    found = list(rows(quick=True, seed=0))
    assert [row["way"] for row in found if row["way"] != "IG, breaching"] == [
        *("IG, plain loop", "IG", "DLG, up to 2 starts", "r-gap")
    ]
    assert {row["images"] for row in found} == {1}
    assert all(row.keys() == found[0].keys() for row in found)
    assert found[-1]["called recovered"] == 1  # as in the table of convolutions
