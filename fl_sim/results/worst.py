"""The worst case: of each kind of leak what the best of all attacks got; and what holds it off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_sim.results.comparison import Comparison
from fl_sim.results.spread import Spread
from fl_sim.results.varied import described
from fl_sim.wording import NONE, epsilon, percent

HIGHER_IS_WORSE = (
    "images_recognisable",
    "images_close",
    "images_identical",
    "images_identified",
    "labels_right",
    "classes_right",
    "masses_right",
    "images_tried",
    "labels_tried",
    "psnr_db",
)
"""Measures of attacks; of all others, the lower is the worse for the client."""
MOST_IMAGES, MOST_BEYOND_CHANCE = 0.05, 0.10
BAR = (
    f"at most {percent(MOST_IMAGES)} of the images beyond 20 dB or identified among 1,000 others, "
    f"at most {percent(MOST_IMAGES)} of the labels within 0.01, and of the classes at most "
    f"{percent(MOST_BEYOND_CHANCE)} more than a guess names"
)
"""What a defense has to hold every attack below, in words."""


def worst(
    comparison: Comparison, cell: int, measure: str, *, attacker: str | None = None
) -> Spread | None:
    """Return the number of the attack that got most of a kind in a cell; None where none has any.

    Which attack that is may differ between measures.

    Args:
        comparison: holds the cell.
        cell: its number.
        measure: of attacks.
        attacker: "unaware" or "aware"; None for both.
    """
    found = [
        number
        for attack, title in comparison.attacks.items()
        if attacker is None or title.endswith(f"({attacker})")
        if (number := comparison.number(cell, attack, measure)) is not None
    ]
    sign = 1 if measure in HIGHER_IS_WORSE else -1
    return max(found, key=lambda one: sign * one.mean, default=None)


def holds(comparison: Comparison, cell: int) -> bool:
    """Say whether no attack of a cell gets beyond `BAR`.

    Not so where no attack, on labels or on images, applies to most of the examples: then nothing
    was tried.
    """

    def mean(name: str) -> float:
        found = worst(comparison, cell, name)
        return 0.0 if found is None else found.mean

    if max(mean("labels_tried"), mean("images_tried")) <= 0.5:
        return False
    beyond = [
        top.mean - guess.mean
        for attack in comparison.attacks
        if (top := comparison.number(cell, attack, "classes_right")) is not None
        and (guess := comparison.number(cell, attack, "class_guess")) is not None
    ]
    names = ("images_recognisable", "images_identified", "labels_right")
    return max(map(mean, names)) <= MOST_IMAGES and max(beyond, default=0.0) <= MOST_BEYOND_CHANCE


@dataclass(frozen=True)
class Recommendation:
    """The weakest setting of a defense that holds, or that none does.

    Args:
        defense: the names of its stages.
        setting: the cell's values, in words; None where no setting holds.
        accuracy: with it.
        cost: the accuracy that it loses against no defense; None where that isn't among the cells.
        epsilon: None where there is no guarantee.
        counts: how far off the best count of its classes is, and a guess; None without one.
        cell: its number; None where no setting holds.
    """

    defense: str
    setting: str | None
    accuracy: float | None = None
    cost: float | None = None
    epsilon: float | None = None
    counts: tuple[float, float] | None = None
    cell: int | None = None

    @property
    def sentence(self) -> str:
        """Say it."""
        if self.setting is None:
            return f"{self.defense}: no setting that was tried holds."
        cost = "" if self.cost is None else f", {in_points(self.cost)} than without a defense"
        bound = "no guarantee" if self.epsilon is None else f"ε = {epsilon(self.epsilon)}"
        said = f"{self.setting}: accuracy {percent(self.accuracy)}{cost}; {bound}"
        if self.counts is not None:
            off, guess = map(percent, self.counts)
            said += f"; class counts are told with an error of {off}, guessed with one of {guess}"
        return f"{said}."


def recommendations(comparison: Comparison) -> list[Recommendation]:
    """Return for each combination of defenses the setting that holds at the highest accuracy.

    There is none unless defenses vary and accuracy is measured; no defense isn't recommended.
    """
    groups: dict[str, list[int]] = {}
    for cell in range(len(comparison.cells)):
        runs = comparison.of_cell(cell)
        if runs:
            groups.setdefault(runs[0].defense, []).append(cell)
    bare = groups.pop("", None)
    varies = any(key.split(".")[0] == "defense" for key in comparison.keys)
    if not varies or not groups:
        return []
    return [_of(comparison, name, cells, bare) for name, cells in groups.items()]


def _of(
    comparison: Comparison, name: str, cells: Sequence[int], bare: Sequence[int] | None
) -> Recommendation:
    known = {
        cell: found.mean
        for cell in cells
        if holds(comparison, cell)
        and (found := comparison.number(cell, None, "accuracy")) is not None
    }
    if not known:
        return Recommendation(name, None)
    cell = max(known, key=known.__getitem__)
    without = _beside(comparison, cell, bare or ())
    off, guess, bound = (
        worst(comparison, cell, "mass_tv"),
        worst(comparison, cell, "mass_tv_chance"),
        comparison.number(cell, None, "epsilon"),
    )
    return Recommendation(
        name,
        described(comparison.cells[cell]) or name,
        known[cell],
        None if without is None else without - known[cell],
        None if bound is None else bound.mean,
        (off.mean, guess.mean) if off and guess else None,
        cell,
    )


def _beside(comparison: Comparison, cell: int, bare: Sequence[int]) -> float | None:
    """Return the accuracy without a defense in the cell that is alike otherwise."""

    def rest(number: int) -> dict[str, object]:
        values = comparison.cells[number]
        return {key: values[key] for key in values if key.split(".")[0] != "defense"}

    for other in bare:
        found = comparison.number(other, None, "accuracy")
        if rest(other) == rest(cell) and found is not None:
            return found.mean
    return None


def in_points(cost: float) -> str:
    """Write a loss of accuracy, as in `1.2 points lower`."""
    return f"{abs(100 * cost):.1f} points {'lower' if cost >= 0 else 'higher'}"


def shown_spread(found: Spread | None) -> str:
    """Write a share with its interval, as in `90 % (86–93)`."""
    if found is None:
        return NONE
    if found.low is None or found.high is None:
        return percent(found.mean)
    return f"{percent(found.mean)} ({100 * found.low:.0f}–{100 * found.high:.0f})"
