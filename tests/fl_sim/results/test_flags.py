"""Flags: each is raised by what it names, and by nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from fl_sim.results.flags import (
    BELOW,
    MEANINGS,
    RANDOM,
    UNCHANGED,
    UNMODELLED,
    UNTRIED,
    WORSE,
    flags,
)
from fl_sim.results.flags import Evidence as Seen

ATTACKS = [{"label": "soft-label", "attacker": who} for who in ("unaware", "aware")]
SCENARIO = {"attack": ATTACKS, "defense": [{"name": "sign"}]}


def line(attack: int, example: int, **values: Any) -> dict[str, Any]:
    who = ATTACKS[attack]["attacker"]
    place = {"round": 1, "client": 0, "attack": attack, "example": example, "attacker": who}
    return {**place, "label_attack": "soft-label", "label_status": "NOT_CONVERGED", **values}


def told(right: tuple[int, int], of: int = 20, **values: Any) -> list[dict[str, Any]]:
    """Records of an unaware and an aware attack with so many labels right."""
    return [
        line(attack, n, label_linf=0.0 if n < right[attack] else 1.0, **values)
        for attack in (0, 1)
        for n in range(of)
    ]


def kinds(*runs: tuple[dict[str, Any], list[Any], list[Any]]) -> list[str]:
    return [flag.kind for flag in flags([Seen.of(*run) for run in runs])]


def test_nothing_is_flagged_without_a_reason() -> None:
    assert kinds((SCENARIO, told((20, 20)), [{"round": 1, "unchanged_by": None}])) == []
    assert flags([]) == []


@pytest.mark.parametrize(("right", "found"), [((20, 5), [WORSE]), ((20, 18), []), ((5, 20), [])])
def test_an_aware_attacker_who_does_worse(right: tuple[int, int], found: list[str]) -> None:
    assert kinds((SCENARIO, told(right), [])) == found


def test_what_one_run_leaves_open_several_decide() -> None:
    run = (SCENARIO, told((6, 2), of=10), [])
    assert kinds(run) == []
    assert kinds(*[run] * 4) == [WORSE]


def test_attacks_that_differ_otherwise_are_no_pair() -> None:
    other = [ATTACKS[0], {**ATTACKS[1], "image": "analytic"}]
    assert kinds(({"attack": other}, told((20, 5)), [])) == []


def test_a_defense_that_changes_nothing_is_named_with_the_rounds() -> None:
    rounds = [{"round": 1, "unchanged_by": "sign+soteria"}, {"round": 2, "unchanged_by": "sign"}]
    found = flags([Seen.of(SCENARIO, [], [*rounds, {"round": 3}])])
    assert [flag.kind for flag in found] == [UNCHANGED] * 2
    assert "sign changed no number of the update in 2 of the 2 rounds" in found[0].sentence
    assert "soteria changed no number of the update in 1 of the 2 rounds" in found[1].sentence


@pytest.mark.parametrize(("psnr", "found"), [(8.0, [BELOW] * 2), (12.0, []), (None, [])])
def test_images_worse_than_the_mean_image(psnr: float | None, found: list[str]) -> None:
    scores = {"psnr_db": psnr, "baseline_psnr_db": 10.0}
    attacks = [{**attack, "image": "dlg"} for attack in ATTACKS]
    assert kinds(({"attack": attacks}, told((20, 20), **scores), [])) == found


@pytest.mark.parametrize(
    ("states", "found"),
    [
        (("NOT_APPLICABLE", "NOT_APPLICABLE"), [UNTRIED]),
        (("NOT_APPLICABLE", "FAILED"), [UNTRIED]),
        (("NOT_APPLICABLE", "NOT_CONVERGED"), []),
        (("RECOVERED", "NOT_IDENTIFIABLE"), []),
    ],
    ids="-".join,
)
def test_attacks_that_dont_apply(states: tuple[str, str], found: list[str]) -> None:
    """One that applies is enough, whatever it comes to."""
    lines = [line(n, 0, label_status=state) for n, state in enumerate(states)]
    assert kinds((SCENARIO, lines, [])) == found


def test_a_fact_that_every_aware_attack_leaves_unused() -> None:
    unused = [line(1, 0, unused_facts="Bottleneck, Pruned"), line(1, 1)]
    assert kinds((SCENARIO, unused, [])) == [UNMODELLED]
    reads = {**line(1, 0), "attack": 2, "unused_facts": "Bottleneck"}
    (flag,) = flags([Seen.of(SCENARIO, [*unused, reads], [])])
    assert "Bottleneck" in flag.sentence
    assert "Pruned" not in flag.sentence
    assert kinds((SCENARIO, [*unused, {**reads, "unused_facts": None}], [])) == []


@pytest.mark.parametrize(
    ("stage", "found"),
    [
        ({"name": "pruning", "criterion": "random"}, [RANDOM]),
        ({"name": "pruning"}, []),
        ({"name": "label-smoothing", "smoothing": [0.0, 0.5]}, [RANDOM]),
        ({"name": "elsewhere:Gone"}, []),
    ],
    ids=["random", "magnitude", "interval", "not here"],
)
def test_a_defense_that_draws(stage: dict[str, Any], found: list[str]) -> None:
    assert kinds(({"defense": [stage]}, [], [])) == found


def test_draws_are_averaged_over_seeds() -> None:
    run = Seen.of({"defense": [{"name": "quantization"}]}, [], [])
    assert "one seed’s draws" in flags([run])[0].sentence
    assert "averaged over 3 seeds" in flags([run] * 3)[0].sentence


def test_every_kind_has_a_meaning() -> None:
    assert {*MEANINGS} == {UNCHANGED, UNTRIED, WORSE, BELOW, UNMODELLED, RANDOM}
