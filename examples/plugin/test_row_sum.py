"""The attack keeps to the rules."""

from fl_sim.testing import check_label_attack


def test_row_sum_conforms() -> None:
    """Blind, pure, seeded, well-formed, honest, robust."""
    check_label_attack("row_sum:RowSum")
