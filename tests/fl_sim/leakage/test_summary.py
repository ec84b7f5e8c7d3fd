"""Records add up; a failed example counts as a failure everywhere."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from typing import Any

import pytest
from rich.console import Console

from fl_sim.leakage.leaks import Leak, Share
from fl_sim.leakage.reasons import Reason, reasons
from fl_sim.leakage.records import LeakageRecord
from fl_sim.leakage.summary import AttackSummary, by_round, summarize
from fl_sim.leakage.table import table

RECOVERED, FAILED = "RECOVERED", "FAILED"


def record(**values: Any) -> dict[str, Any]:
    """Return a line of the log: a recovered label and image, but for `values`."""
    base = LeakageRecord(
        round=1,
        client=0,
        attack=0,
        example=0,
        batch_size=1,
        attacker="unaware",
        label_attack="soft-label",
        label_status=RECOVERED,
        label_linf=1e-6,
        label_top1=True,
        label_seconds=2.0,
        baseline_top1=False,
        image_attack="analytic",
        image_status=RECOVERED,
        psnr_db=100.0,
        baseline_psnr_db=10.0,
        image_seconds=1.0,
    )
    line: dict[str, Any] = json.loads(dataclasses.replace(base, **values).to_json())
    return line


def leak_of(summary: AttackSummary, kind: str) -> Leak:
    found = summary.leak(kind)
    assert found is not None
    return found


def failed(**values: Any) -> dict[str, Any]:
    nothing = {"label_linf": None, "label_top1": None, "psnr_db": None}
    reason = {"label_status": FAILED, "label_reason": "it raised", "image_status": FAILED}
    return record(**nothing | reason | values)


def test_summary_of_mixed_records() -> None:
    records = [
        record(client=0),
        record(client=1, label_linf=5e-3, psnr_db=40.0, baseline_top1=True),
        record(client=2, label_linf=0.5, label_top1=False, psnr_db=5.0, image_status=FAILED),
        failed(client=3),
        record(client=4, attack=None, label_status=None, label_reason="it holds NaN"),
    ]
    (summary,) = summarize(records)
    image, label, largest = summary.leaks
    assert (summary.examples, label.vouched.count, image.vouched.count) == (4, 3, 2)
    assert (label.right, summary.label_strict) == (Share(2, 4), 0.25)
    assert (label.false, image.false) == (1, 1)  # 40 dB, of at least 50
    assert (largest.right, largest.chance) == (Share(2, 4), 0.25)
    # Ranked 1e-6, 5e-3, 0.5, failed and failed, 5, 40, 100: the middle is the mean of two.
    assert summary.median_linf == pytest.approx((5e-3 + 0.5) / 2)
    assert summary.psnr_db == pytest.approx((5.0 + 40.0) / 2)
    assert (summary.label_seconds, summary.image_seconds) == (2.0, 1.0)
    assert summary.total_seconds == pytest.approx(12.0)


@pytest.mark.parametrize(
    ("linf", "is_success", "is_strict"),
    [(9.99e-4, 1, 1), (1e-3, 1, 0), (9.99e-3, 1, 0), (1e-2, 0, 0), (None, 0, 0)],
)
def test_bounds_are_strict(linf: float | None, is_success: int, is_strict: int) -> None:
    summary = summarize([record(label_linf=linf), failed(client=1, label_linf=1.0)])[0]
    if linf is None:  # a claim that was never scored, beside one that was
        assert leak_of(summary, "label").false == 0
    right = leak_of(summary, "label").right
    assert (right, summary.label_strict) == (Share(is_success, 2), is_strict / 2)


def test_medians_are_none_where_most_examples_failed() -> None:
    (summary,) = summarize([record(), failed(client=1), failed(client=2)])
    assert summary.median_linf is None
    assert summary.psnr_db is None
    assert summary.baseline_psnr_db == 10.0


def test_claims_without_a_truth_have_no_success() -> None:
    (summary,) = summarize([record(label_linf=None, label_top1=None)])
    label, largest = leak_of(summary, "label"), leak_of(summary, "class")
    assert (label.vouched, label.right, largest.right) == (Share(1, 1), None, None)
    assert summary.label_strict is None


def test_a_line_without_an_example_stands_for_its_batch() -> None:
    lines = [failed(example=None, batch_size=3), record(client=1)]
    (summary,) = summarize(lines)
    assert (summary.examples, leak_of(summary, "label").right) == (4, Share(1, 4))
    assert reasons(lines)[0].count == 3


def test_a_line_without_an_example_stands_for_all_that_its_steps_took() -> None:
    lines = [failed(example=None, batch_size=3, examples=7), record(client=1)]
    (summary,) = summarize(lines)
    assert (summary.examples, leak_of(summary, "label").right) == (8, Share(1, 8))


def test_a_batch_takes_its_time_once() -> None:
    records = [record(example=index, batch_size=4) for index in range(4)]
    assert summarize(records)[0].total_seconds == pytest.approx(3.0)


def test_rounds_have_medians_and_bands() -> None:
    first = [record(client=client, psnr_db=10.0 * (client + 1)) for client in range(10)]
    second = [record(round=2), failed(round=2, client=1)]
    other = [record(attack=1, label_linf=0.5)]
    lines = by_round([*second, *other, *first])
    assert [(line.attack, line.round, line.examples) for line in lines] == [
        (0, 1, 10),
        (0, 2, 2),
        (1, 1, 1),
    ]
    assert (lines[0].psnr_low_db, lines[0].psnr_db, lines[0].psnr_high_db) == (10.0, 55.0, 90.0)
    assert (lines[1].psnr_low_db, lines[1].psnr_high_db) == (None, 100.0)
    assert [line.label_success for line in lines] == [1.0, 0.5, 0.0]


def test_reasons_that_differ_in_numbers_are_one() -> None:
    def not_converged(client: int, residual: str) -> dict[str, Any]:
        reason = f"residual {residual} of conv2d is above 1e-4"
        return record(client=client, label_status="NOT_CONVERGED", label_reason=reason)

    quarantined = record(attack=None, label_status=None, label_reason="3 of 4 arrays")
    assert reasons([quarantined, not_converged(1, "0.5"), not_converged(2, "2.5e-03")]) == [
        Reason(0, "soft-label", "NOT_CONVERGED", "residual … of conv2d is above 1e-4", 2),
        Reason(None, "reply", FAILED, "3 of 4 arrays", 1),
    ]
    assert reasons([record()]) == []


def text_of(records: list[dict[str, Any]]) -> str:
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(table(records))
    return captured.get()


def test_table_fits_a_terminal_of_100_columns() -> None:
    long = "my_package.attacks:SomeVeryLongAttackName[bold]"
    records = [record(client=c, attack=a, label_attack=long) for a in range(3) for c in range(1000)]
    shown = text_of([*records, failed(attack=None)])
    assert max(map(len, shown.splitlines())) <= 100
    assert "100.0 %" in shown
    assert "[bold]" in "".join(line[:30].strip() for line in shown.splitlines())
    assert "1 reply couldn't be attacked" in shown
    assert "…" not in shown  # nothing was cut


def test_table_of_no_records_says_so() -> None:
    assert "no update was attacked" in text_of([])


def test_a_count_attack_sums_up_by_mass() -> None:
    """A line stands for its whole batch; the closing table says how far the mass is off."""
    nothing = {"example": None, "batch_size": 8, "label_status": "NOT_IDENTIFIABLE"}
    nothing |= {"label_reason": "assumed", "label_linf": None, "label_attack": "label-mass"}
    scores = {"mass_tv_chance": 0.5, "image_attack": None, "image_status": None}
    records = [
        record(client=0, mass_tv=0.1, mass_irec=1.0, **nothing, **scores),
        record(client=1, mass_tv=0.3, mass_irec=0.5, **nothing, **scores),
    ]
    (summary,) = summarize(records)
    assert summary.mass_tv == pytest.approx(0.2)
    assert summary.mass_tv_chance == pytest.approx(0.5)
    assert summary.mass_irec == pytest.approx(0.75)
    mass = leak_of(summary, "mass")
    assert (mass.right, mass.vouched, mass.false) == (Share(2, 2), Share(0, 2), 0)
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table(records))
    assert "class mass off by 20.0 % (guess: 50.0 %)" in captured.get()


@pytest.mark.parametrize(
    ("psnr", "is_false"), [(49.99, 1), (50.0, 0), (200.0, 0), (None, 0)], ids=str
)
def test_an_image_claimed_below_50_db_is_a_false_accept(psnr: float | None, is_false: int) -> None:
    """One that isn't scored, since its range isn't known, is none."""
    (summary,) = summarize([record(psnr_db=psnr), failed(client=1, psnr_db=3.0)])
    image = leak_of(summary, "image")
    assert (image.vouched, image.false) == (Share(1, 2), is_false)


def test_the_table_tells_claims_from_right_answers_and_false_ones() -> None:
    lines = [
        record(label_linf=0.5, psnr_db=5.0),
        *(failed(client=n, label_linf=0.0) for n in (1, 2)),
    ]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(lines))
    shown = console.export_text()
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 100
    assert shown.count("vouched") == 2
    row, below = (line.split() for line in shown.splitlines() if re.search(r"^ *soft|\(1\)", line))
    # Three examples: no image right, two labels; one of each vouched for, and both are false.
    assert row[row.index("3") :][:5] == ["3", "0.0", "%", "66.7", "%"]
    assert below.count("(1)") == 2
