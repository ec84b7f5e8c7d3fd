"""The benchmark of gradient matching: its rows, and the plain loop that it stands beside."""

from __future__ import annotations

from fl_sim.bench import image_matching
from fl_sim.bench.image_matching import rows


def test_rows_are_flat_and_paired() -> None:
    found = []
    for row in rows(quick=True, seed=0):
        found.append(row)
        if row["setting"] == "IG, free label":
            break
    assert [row["setting"] for row in found] == [
        f"IG, {kind} label" for kind in ("true", "recovered", "hard", "free")
    ]
    assert all(row.keys() == found[0].keys() for row in found)
    assert all(isinstance(value, str | int | float) for row in found for value in row.values())
    assert [row["labels known"] for row in found] == [4, 4, 4, 0]


def test_the_search_goes_where_the_plain_loop_goes() -> None:
    """The same starts, the same steps: images alike to what rounding does to signs."""
    plain, ours, _ = image_matching._quality_rows("lenet", 1, 12, 0)
    assert plain["setting"] == "plain loop, IG"
    assert abs(float(str(plain["PSNR median dB"])) - float(str(ours["PSNR median dB"]))) <= 0.1


def test_intervals_are_students() -> None:
    text = image_matching._difference([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    assert text == "+1.00 (-1.48 to +3.48)"  # 1 ± 4.303 / √3
