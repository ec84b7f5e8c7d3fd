"""What kinds of things an attack learned: right, as the judge knows; vouched for, as it claims."""

from __future__ import annotations

from typing import Any

import pytest

from fl_sim.leakage.leaks import Leak, Share, leaks_of

Lines = list[dict[str, Any]]


def line(**values: Any) -> dict[str, Any]:
    return {"label_linf": 0.0, "label_top1": True, "baseline_top1": False, **values}


def by_kind(lines: Lines) -> dict[str, Leak]:
    return {leak.kind: leak for leak in leaks_of(lines)}


@pytest.mark.parametrize(
    ("count", "of", "interval"),
    # By the formula (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964.
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (99, 100, (0.9455, 0.9982)), (0, 0, (0, 1))],
)
def test_intervals_are_wilsons(count: int, of: int, interval: tuple[float, float]) -> None:
    assert Share(count, of).interval == pytest.approx(interval, abs=1e-4)


def test_what_is_right_and_what_is_vouched_for_are_counted_apart() -> None:
    lines = [
        line(label_status="RECOVERED", label_certainty="vouched"),
        line(label_status="NOT_IDENTIFIABLE", label_certainty="likely"),
        line(label_status="NOT_CONVERGED", label_certainty="guess", label_linf=0.5),
        line(label_status="RECOVERED", label_certainty="vouched", label_linf=0.3, label_top1=False),
        line(label_status="NOT_CONVERGED", label_linf=None, label_top1=None),
    ]
    found = by_kind(lines)
    label, largest = found["label"], found["class"]
    assert list(found) == ["label", "class"]
    assert (label.right, largest.right) == (Share(2, 5), Share(3, 5))
    for leak in (label, largest):
        assert (leak.vouched, leak.likely, leak.guessed, leak.false) == (Share(2, 5), 1, 1, 1)


@pytest.mark.parametrize(
    ("psnrs", "level", "right"),
    [
        ([60.0] * 9 + [35.0], 50.0, 9),
        ([60.0] * 8 + [35.0] * 2, 30.0, 10),
        ([60.0] * 5 + [22.0] * 5, 20.0, 10),
        ([60.0] * 5 + [12.0] * 5, 50.0, 5),
        ([12.0] * 10, 20.0, 0),
    ],
)
def test_an_image_is_right_at_a_level_that_most_reach(
    psnrs: list[float], level: float, right: int
) -> None:
    image = by_kind([line(image_attack="mine", psnr_db=psnr) for psnr in psnrs])["image"]
    assert (image.level_db, image.right) == (level, Share(right, 10))


def test_an_image_that_is_claimed_below_the_claims_level_is_false() -> None:
    lines = [
        line(image_attack="mine", image_status="RECOVERED", psnr_db=psnr)
        for psnr in (60.0, 49.0, None)
    ]
    assert by_kind(lines)["image"].false == 1


def test_classes_count_beyond_what_a_guess_gets() -> None:
    few = [line(label_linf=0.5, baseline_top1=True)] * 3 + [line(label_top1=False)] * 7
    assert not by_kind(few)["class"].is_beyond_chance
    many = [line(label_linf=0.5)] * 9 + [line(label_top1=False, baseline_top1=True)]
    assert by_kind(many)["class"].is_beyond_chance


@pytest.mark.parametrize(("kind", "is_beyond"), [("hard", False), ("label-smoothing", True)])
def test_who_guesses_the_class_of_a_hard_label_has_the_label(kind: str, is_beyond: bool) -> None:
    lines = [line(true_augmentation=kind, baseline_top1=True)] * 3 + [line(label_linf=0.9)] * 7
    assert by_kind(lines)["label"].is_beyond_chance is is_beyond


def test_a_mass_counts_where_it_is_nearer_than_a_guess() -> None:
    near, far = {"mass_tv": 0.1, "mass_tv_chance": 0.3}, {"mass_tv": 0.3, "mass_tv_chance": 0.3}
    [mass] = leaks_of([{**one, "client": k} for k, one in enumerate([near] * 9 + [far])])
    assert (mass.kind, mass.right, mass.chance) == ("mass", Share(9, 10), 0.5)
    assert mass.is_beyond_chance
    [even] = leaks_of([{**one, "client": k} for k, one in enumerate([near, far] * 5)])
    assert not even.is_beyond_chance
