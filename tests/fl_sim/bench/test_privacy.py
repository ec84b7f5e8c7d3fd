"""`fl-sim bench simulator --only privacy`: its rows, and how they compare two numbers."""

from __future__ import annotations

import math

import pytest

from fl_sim.bench.privacy import deviation, rows


def test_rows_are_close_to_the_other_accountant() -> None:
    measured = list(rows(quick=True, seed=0))
    assert len(measured) == 12
    assert all(0 <= float(str(row["deviation, %"])) <= 1 for row in measured)


@pytest.mark.parametrize(
    ("found", "independent", "expected"),
    [(1.02, 1.0, 2.0), (0.99, 1.0, -1.0), (0.0, 0.0, 0.0), (1e-9, 0.0, math.inf)],
)
def test_deviation_is_in_percent_of_the_independent_value(
    found: float, independent: float, expected: float
) -> None:
    assert deviation(found, independent) == pytest.approx(expected, rel=1e-9)
