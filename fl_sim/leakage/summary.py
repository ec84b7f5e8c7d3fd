"""What a run's leakage records add up to.

A record is a line of `leakage.jsonl`, as `fl_sim.leakage.records.read_lines` returns it. An example
that an attack failed on counts as a failure in every share and as the worst value in every median.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from fl_sim.leakage.leaks import Leak, Record, leaks_of
from fl_sim.leakage.records import senders

STRICT_TOLERANCE = 1e-3
"""Least L∞ error of a label that isn't strictly right."""


@dataclass(frozen=True)
class AttackSummary:
    """What one `[[attack]]` learned over a whole run.

    Shares are in [0, 1]. A median is None where it falls on a failed example.

    Attributes:
        attack: Index of the `[[attack]]` in the scenario.
        examples: Number of attacked examples, failed ones included.
        leaks: What it learned, kind by kind, the strongest kind first.
        label_strict: Share of labels with an L∞ error below 1e-3; None without a truth.
        psnr_db: Median PSNR of the images.
        baseline_psnr_db: The same median for the guess of the mean image.
        label_seconds: Median seconds of the label attack on one update.
        image_seconds: Median seconds of the image attack on one update.
        total_seconds: Seconds of both, over all updates.
        mass_tv: Mean total variation distance of the class mass, from attacks that count.
        mass_tv_chance: The same mean for the guess of the test data's class shares.
        mass_irec: Mean share of instances recovered, after rounding.
    """

    attack: int
    label_attack: str | None
    image_attack: str | None
    attacker: str | None
    examples: int
    leaks: tuple[Leak, ...]
    label_strict: float | None
    median_linf: float | None
    psnr_db: float | None
    baseline_psnr_db: float | None
    label_seconds: float | None
    image_seconds: float | None
    total_seconds: float
    mass_tv: float | None = None
    mass_tv_chance: float | None = None
    mass_irec: float | None = None

    @property
    def claims(self) -> list[Leak]:
        """What it learned of the kinds that are vouched for: a class is its label's."""
        return [leak for leak in self.leaks if leak.kind in ("image", "label")]

    def leak(self, kind: str) -> Leak | None:
        """Return what it learned of a kind; None if it tells nothing of such."""
        return next((leak for leak in self.leaks if leak.kind == kind), None)

    @property
    def title(self) -> str:
        """The attacks' names, as in `soft-label + analytic`."""
        return " + ".join(name for name in (self.label_attack, self.image_attack) if name) or "?"


@dataclass(frozen=True)
class RoundLeakage:
    """What one attack learned in one round; fields as in `AttackSummary`.

    `psnr_low_db` and `psnr_high_db` are the 10 % and 90 % quantiles, None on a failed example.
    """

    attack: int
    round: int
    examples: int
    label_success: float | None
    baseline_top1: float | None
    psnr_db: float | None
    psnr_low_db: float | None
    psnr_high_db: float | None
    baseline_psnr_db: float | None


def summarize(records: Iterable[Record]) -> list[AttackSummary]:
    """Sum up each attack, in the order of the scenario."""
    groups = _grouped(records, "attack")
    return [_summary(attack, group) for (attack,), group in sorted(groups.items())]


def by_round(records: Iterable[Record]) -> list[RoundLeakage]:
    """Sum up each attack in each round, ordered by attack, then by round."""
    groups = _grouped(records, "attack", "round")
    return [_round(attack, at, group) for (attack, at), group in sorted(groups.items())]


def weighed(records: Iterable[Record]) -> Iterator[tuple[Record, int]]:
    """Yield each line with the number of examples that it stands for.

    That is all its update's where it names no example and is the update's only line; beside others,
    it is a row that was compared with no example.
    """
    records = list(records)
    lines = Counter(_update(record) for record in records)
    for record in records:
        stands_alone = record.get("example") is None and lines[_update(record)] == 1
        is_batch = record.get("attack") is not None and stands_alone
        examples = record.get("examples") or record.get("batch_size") or 1
        yield record, examples if is_batch else 1


def _update(record: Record) -> tuple[Any, ...]:
    return record.get("round"), senders(record), record.get("attack")


def _grouped(records: Iterable[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    """Group the lines of attacks, a line once for each example that it stands for."""
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record, weight in weighed(records):
        if record.get("attack") is not None:
            groups[tuple(record[key] for key in keys)] += [record] * weight
    return groups


def _summary(attack: int, group: Sequence[Record]) -> AttackSummary:
    linf = [record.get("label_linf") for record in group]
    leaks = tuple(leaks_of(group))
    is_scored = any(leak.kind == "label" and leak.right is not None for leak in leaks)
    label_seconds = _seconds(group, "label_seconds")
    image_seconds = _seconds(group, "image_seconds")
    return AttackSummary(
        attack=attack,
        label_attack=_first(group, "label_attack"),
        image_attack=_first(group, "image_attack"),
        attacker=_first(group, "attacker"),
        examples=len(group),
        leaks=leaks,
        label_strict=_share_below(linf, STRICT_TOLERANCE) if is_scored else None,
        median_linf=_quantile(linf, 0.5, worst=math.inf),
        psnr_db=_quantile([record.get("psnr_db") for record in group], 0.5, worst=-math.inf),
        baseline_psnr_db=_known_median(group, "baseline_psnr_db"),
        label_seconds=median(label_seconds) if label_seconds else None,
        image_seconds=median(image_seconds) if image_seconds else None,
        total_seconds=math.fsum(label_seconds) + math.fsum(image_seconds),
        mass_tv=_mean(group, "mass_tv"),
        mass_tv_chance=_mean(group, "mass_tv_chance"),
        mass_irec=_mean(group, "mass_irec"),
    )


def _round(attack: int, server_round: int, group: Sequence[Record]) -> RoundLeakage:
    psnr = [record.get("psnr_db") for record in group]
    leaks = {leak.kind: leak for leak in leaks_of(group)}
    label = leaks.get("label")
    return RoundLeakage(
        attack=attack,
        round=server_round,
        examples=len(group),
        label_success=label.right.value if label is not None and label.right else None,
        baseline_top1=_mean(group, "baseline_top1"),
        psnr_db=_quantile(psnr, 0.5, worst=-math.inf),
        psnr_low_db=_quantile(psnr, 0.1, worst=-math.inf),
        psnr_high_db=_quantile(psnr, 0.9, worst=-math.inf),
        baseline_psnr_db=_known_median(group, "baseline_psnr_db"),
    )


def _first(group: Sequence[Record], key: str) -> Any:
    return next((record.get(key) for record in group if record.get(key) is not None), None)


def _share_below(errors: Sequence[float | None], bound: float) -> float:
    return sum(error is not None and error < bound for error in errors) / len(errors)


def _quantile(values: Sequence[float | None], q: float, *, worst: float) -> float | None:
    """Return a quantile with None ranked as `worst`, or None where the quantile falls on it."""
    ranked = sorted(worst if value is None else value for value in values)
    # Nearest rank, since interpolating towards an infinity is meaningless.
    nearest = ranked[max(math.ceil(q * len(ranked)) - 1, 0)]
    result = median(ranked) if q == 0.5 else nearest
    return result if math.isfinite(result) else None


def _known(group: Sequence[Record], key: str) -> list[float]:
    return [value for record in group if (value := record.get(key)) is not None]


def _mean(group: Sequence[Record], key: str) -> float | None:
    values = _known(group, key)
    return sum(values) / len(values) if values else None


def _known_median(group: Sequence[Record], key: str) -> float | None:
    values = _known(group, key)
    return median(values) if values else None


def _seconds(group: Sequence[Record], key: str) -> list[float]:
    """Return one time for each attacked update: every example's line repeats it."""
    times = {(record["round"], senders(record)): record.get(key) for record in group}
    return [seconds for seconds in times.values() if seconds is not None]
