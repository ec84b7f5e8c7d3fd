"""What kinds of things an attack learned: as the judge knows, and as the attacker knows.

The judge counts what is right; the attacker, who doesn't see the truth, says of each answer how
sure it is (`attacks.Certainty`). The two are never mixed: a right answer may be a guess, and one
that is vouched for may be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from fl_sim.leakage.records import senders

Record = Mapping[str, Any]

TOLERANCE = 1e-2
"""Least L∞ error of a label that isn't right."""
IMAGE_LEVELS_DB = (50.0, 30.0, 20.0)
"""PSNRs at which an image is identical to the eye, hardly different, and recognisable."""
SURE = 0.95


@dataclass(frozen=True)
class Share:
    """A number of examples out of all, with its 95 % interval by Wilson.

    E. B. Wilson, *Probable inference, the law of succession, and statistical inference*, JASA 22,
    1927.
    """

    count: int
    of: int

    @classmethod
    def total(cls, shares: Iterable[Share]) -> Share:
        """Add up shares of different examples; of none, 0 of 0."""
        known = list(shares)
        return cls(sum(one.count for one in known), sum(one.of for one in known))

    @property
    def interval(self) -> tuple[float, float]:
        """The ends in [0, 1]; all of [0, 1] where there is no example."""
        if not self.of:
            return 0.0, 1.0
        found = binomtest(self.count, self.of).proportion_ci(SURE, method="wilson")
        return float(found.low), float(found.high)

    @property
    def value(self) -> float:
        """The share in [0, 1]; 0 where there is no example."""
        return self.count / self.of if self.of else 0.0


@dataclass(frozen=True)
class Leak:
    """How much an attack learned of one kind.

    Attributes:
        kind: "image", "label" (all its entries), "class" (its largest) or "mass" (of the classes of
            an update, one for each update).
        right: those that are right, as the judge knows; None without a truth. An image is right
            from `level_db` on, a label within L∞ < 0.01, a mass where it is nearer than a guess.
        chance: the share that a guess without any update gets right.
        vouched: those that the attacker vouches for, as it knows.
        likely: those that it gives with an error bar.
        guessed: those that it gives without.
        false: vouched for, and wrong by the claim's own standard.
        level_db: of images.
    """

    kind: str
    right: Share | None
    chance: float
    vouched: Share
    likely: int
    guessed: int
    false: int = 0
    level_db: float | None = None

    @property
    def is_beyond_chance(self) -> bool:
        """Whether more are right than a guess explains: their interval lies above it."""
        return self.right is not None and self.right.interval[0] > self.chance


def leaks_of(group: Sequence[Record]) -> list[Leak]:
    """Return the kinds of leaks that an attack's records tell of, the strongest kind first.

    Args:
        group: its records, a line once for each example that it stands for.
    """
    if any(record.get("mass_tv") is not None for record in group):
        updates = {(record.get("round"), senders(record)): record for record in group}
        return [_mass(list(updates.values()))]
    kinds = [_image(group)] if any(record.get("image_attack") for record in group) else []
    return [*kinds, _label(group), _class(group)]


def _image(group: Sequence[Record]) -> Leak:
    psnrs = [record.get("psnr_db") for record in group]
    level = _level(psnrs)
    guesses = [record.get("baseline_class_psnr_db") or 0.0 for record in group]
    chance = sum(guess >= level for guess in guesses) / len(group)
    return Leak(
        "image",
        _share(group, lambda record: (record.get("psnr_db") or 0.0) >= level)
        if _is_scored(group, "image", "psnr_db")
        else None,
        chance,
        *_certainties(group, "image"),
        false=sum(
            _is_claimed(record, "image")
            and (psnr := record.get("psnr_db")) is not None
            and psnr < IMAGE_LEVELS_DB[0]
            for record in group
        ),
        level_db=level,
    )


def _level(psnrs: Sequence[float | None]) -> float:
    """Return the highest level that nine tenths of the recognisable images reach."""
    known = [psnr for psnr in psnrs if psnr is not None and psnr >= IMAGE_LEVELS_DB[-1]]
    for level in IMAGE_LEVELS_DB:
        if known and sum(psnr >= level for psnr in known) >= 0.9 * len(known):
            return level
    return IMAGE_LEVELS_DB[-1]


def _label(group: Sequence[Record]) -> Leak:
    errors = [record.get("label_linf") for record in group]
    hard_guesses = [  # who guesses the class of a hard label has the label
        record.get("baseline_top1") is True and record.get("true_augmentation") == "hard"
        for record in group
    ]
    return Leak(
        "label",
        _share(group, lambda record: _is_below(record.get("label_linf")))
        if _is_scored(group, "label", "label_linf")
        else None,
        sum(hard_guesses) / len(group),
        *_certainties(group, "label"),
        false=sum(
            _is_claimed(record, "label") and error is not None and error >= TOLERANCE
            for record, error in zip(group, errors, strict=True)
        ),
    )


def _class(group: Sequence[Record]) -> Leak:
    guesses = [record.get("baseline_top1") is True for record in group]
    return Leak(
        "class",
        _share(group, lambda record: record.get("label_top1") is True)
        if _is_scored(group, "label", "label_top1")
        else None,
        sum(guesses) / len(group),
        *_certainties(group, "label"),
        false=sum(
            _is_claimed(record, "label") and record.get("label_top1") is False for record in group
        ),
    )


def _mass(group: Sequence[Record]) -> Leak:
    def is_nearer(record: Record) -> bool:
        found, guess = record.get("mass_tv"), record.get("mass_tv_chance")
        return found is not None and guess is not None and found < guess

    return Leak("mass", _share(group, is_nearer), 0.5, Share(0, len(group)), 0, len(group))


def _is_below(error: float | None) -> bool:
    return error is not None and error < TOLERANCE


def _share(group: Sequence[Record], is_right: Callable[[Record], bool]) -> Share:
    return Share(sum(map(is_right, group)), len(group))


def _certainties(group: Sequence[Record], part: str) -> tuple[Share, int, int]:
    """Return how many are vouched for, likely and guessed."""
    likely, guessed = (
        sum(record.get(f"{part}_certainty") == certainty for record in group)
        for certainty in ("likely", "guess")
    )
    return _share(group, lambda record: _is_claimed(record, part)), likely, guessed


def _is_claimed(record: Record, part: str) -> bool:
    return bool(record.get(f"{part}_status") == "RECOVERED")


def _is_scored(group: Sequence[Record], part: str, score: str) -> bool:
    """Say whether answers were compared with the truth, or none was found to be compared."""
    has_answers = any(
        _is_claimed(record, part) or record.get(f"{part}_certainty") is not None for record in group
    )
    return not has_answers or any(record.get(score) is not None for record in group)
