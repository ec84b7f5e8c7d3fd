"""What a run's leakage records add up to.

A record is a line of `leakage.jsonl`, as `fl_sim.records.read_lines` returns it. An example that an
attack failed on counts as a failure in every share and as the worst value in every median.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

Record = Mapping[str, Any]

TOLERANCE, STRICT_TOLERANCE = 1e-2, 1e-3
"""Largest L∞ error of a label that counts as recovered."""
CLAIM_DB = 50.0
"""Least PSNR of an image that is claimed as recovered."""

_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)", re.IGNORECASE)


@dataclass(frozen=True)
class AttackSummary:
    """What one `[[attack]]` learned over a whole run.

    Shares are in [0, 1]. A median is None where it falls on a failed example. Label scores are None
    where labels were recovered but none was compared with the truth.

    Attributes:
        attack: Index of the `[[attack]]` in the scenario.
        examples: Number of attacked examples, failed ones included.
        recovered: Labels whose status is RECOVERED, which is the attack's own claim.
        label_success: Share of labels with an L∞ error below 1e-2.
        label_strict: Share of labels with an L∞ error below 1e-3.
        false_accepts: Labels claimed as RECOVERED with an L∞ error of 1e-2 or more.
        top1: Share of labels whose largest class is right.
        baseline_top1: The same share for the guess of the majority class.
        images_recovered: Images whose status is RECOVERED.
        false_images: Images claimed as RECOVERED with a PSNR below 50 dB.
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
    recovered: int
    label_success: float | None
    label_strict: float | None
    false_accepts: int
    median_linf: float | None
    top1: float | None
    baseline_top1: float | None
    images_recovered: int
    false_images: int
    psnr_db: float | None
    baseline_psnr_db: float | None
    label_seconds: float | None
    image_seconds: float | None
    total_seconds: float
    mass_tv: float | None = None
    mass_tv_chance: float | None = None
    mass_irec: float | None = None

    @property
    def labels_recovered(self) -> int:
        """Number of labels with an L∞ error below 1e-2."""
        return round((self.label_success or 0.0) * self.examples)

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


@dataclass(frozen=True)
class Reason:
    """Why something wasn't recovered, and how often.

    `attack` is None for a reply that couldn't be attacked. `name` is the attack's name, or "reply".
    """

    attack: int | None
    name: str
    status: str
    reason: str
    count: int


def summarize(records: Iterable[Record]) -> list[AttackSummary]:
    """Sum up each attack, in the order of the scenario."""
    groups = _grouped(records, "attack")
    return [_summary(attack, group) for (attack,), group in sorted(groups.items())]


def by_round(records: Iterable[Record]) -> list[RoundLeakage]:
    """Sum up each attack in each round, ordered by attack, then by round."""
    groups = _grouped(records, "attack", "round")
    return [_round(attack, at, group) for (attack, at), group in sorted(groups.items())]


def reasons(records: Iterable[Record]) -> list[Reason]:
    """Count why labels, images and whole replies weren't recovered, the most frequent first.

    Reasons that differ only in their numbers are one; a number that differs is written as `…`.
    """
    counts: Counter[tuple[int | None, str, str, str]] = Counter()
    for record in records:
        attack = record.get("attack")
        for stage in ("label", "image"):
            status = record.get(f"{stage}_status")
            is_reply = attack is None and stage == "label"
            if is_reply or status not in (None, "RECOVERED"):
                name = "reply" if is_reply else record.get(f"{stage}_attack") or stage
                reason = record.get(f"{stage}_reason") or "no reason was recorded"
                counts[attack, name, status or "FAILED", reason] += _weight(record)
    alike: dict[tuple[int | None, str, str, str], list[str]] = defaultdict(list)
    totals: Counter[tuple[int | None, str, str, str]] = Counter()
    for (attack, name, status, reason), count in counts.items():
        key = (attack, name, status, _NUMBER.sub("…", reason))
        alike[key].append(reason)
        totals[key] += count
    return [Reason(*key[:3], _merged(alike[key]), count) for key, count in totals.most_common()]


def table(records: Iterable[Record]) -> Table:
    """Return the closing table of a run, one row for each attack; it fits 100 columns."""
    records = list(records)
    result = Table(box=SIMPLE, pad_edge=False, caption_justify="left")
    result.add_column("attack", overflow="fold", max_width=24)
    result.add_column("attacker")
    for heading in (
        "examples",
        "labels\nclaimed\n(false)",
        "labels\nright",
        "class\nright\n(guess)",
        "images\nclaimed\n(false)",
        "PSNR dB\n(mean\nimage)",
        "seconds",
    ):
        result.add_column(heading, justify="right")
    summaries = summarize(records)
    for summary in summaries:
        has_images = summary.image_attack is not None
        result.add_row(
            Text(summary.title),
            Text(summary.attacker or ""),
            str(summary.examples),
            f"{summary.recovered}\n({summary.false_accepts})",
            _percent(summary.label_success),
            f"{_percent(summary.top1)}\n({_percent(summary.baseline_top1)})",
            f"{summary.images_recovered}\n({summary.false_images})" if has_images else "",
            f"{_db(summary.psnr_db)}\n({_db(summary.baseline_psnr_db)})" if has_images else "",
            f"{summary.total_seconds:.3g}",
        )
    unattacked = sum(record.get("attack") is None for record in records)
    notes = [
        *(_mass_note(summary) for summary in summaries),
        "" if result.row_count else "no update was attacked",
        f"{unattacked} {'reply' if unattacked == 1 else 'replies'} couldn't be attacked"
        if unattacked
        else "",
    ]
    result.caption = "; ".join(note for note in notes if note) or None
    return result


def _mass_note(summary: AttackSummary) -> str:
    if summary.mass_tv is None or summary.mass_tv_chance is None:
        return ""
    return (
        f"{summary.title}: class mass off by {_percent(summary.mass_tv)} "
        f"(guess: {_percent(summary.mass_tv_chance)})"
    )


def _merged(alike: Sequence[str]) -> str:
    """Write reasons that differ only in numbers as one."""
    columns = zip(*(_NUMBER.findall(reason) for reason in alike), strict=True)
    numbers = iter([column[0] if len({*column}) == 1 else "…" for column in columns])
    return _NUMBER.sub(lambda _: next(numbers), alike[0])


def _weight(record: Record) -> int:
    """Return how many examples a line stands for: its whole batch where it names no example."""
    if record.get("attack") is None or record.get("example") is not None:
        return 1
    return record.get("batch_size") or 1


def _grouped(records: Iterable[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    """Group the lines of attacks, a line once for each example that it stands for."""
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        if record.get("attack") is not None:
            groups[tuple(record[key] for key in keys)] += [record] * _weight(record)
    return groups


def _summary(attack: int, group: Sequence[Record]) -> AttackSummary:
    linf = [record.get("label_linf") for record in group]
    claims = [record.get("label_status") == "RECOVERED" for record in group]
    image_claims = [record.get("image_status") == "RECOVERED" for record in group]
    psnrs = [record.get("psnr_db") for record in group]
    is_scored = _is_scored(group)
    label_seconds = _seconds(group, "label_seconds")
    image_seconds = _seconds(group, "image_seconds")
    return AttackSummary(
        attack=attack,
        label_attack=_first(group, "label_attack"),
        image_attack=_first(group, "image_attack"),
        attacker=_first(group, "attacker"),
        examples=len(group),
        recovered=sum(claims),
        label_success=_share_below(linf, TOLERANCE) if is_scored else None,
        label_strict=_share_below(linf, STRICT_TOLERANCE) if is_scored else None,
        false_accepts=sum(
            claim and error is not None and error >= TOLERANCE
            for claim, error in zip(claims, linf, strict=True)
        ),
        median_linf=_quantile(linf, 0.5, worst=math.inf),
        top1=sum(record.get("label_top1") is True for record in group) / len(group)
        if is_scored
        else None,
        baseline_top1=_mean(group, "baseline_top1"),
        images_recovered=sum(image_claims),
        false_images=sum(
            claim and psnr is not None and psnr < CLAIM_DB
            for claim, psnr in zip(image_claims, psnrs, strict=True)
        ),
        psnr_db=_quantile(psnrs, 0.5, worst=-math.inf),
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
    linf = [record.get("label_linf") for record in group]
    return RoundLeakage(
        attack=attack,
        round=server_round,
        examples=len(group),
        label_success=_share_below(linf, TOLERANCE) if _is_scored(group) else None,
        baseline_top1=_mean(group, "baseline_top1"),
        psnr_db=_quantile(psnr, 0.5, worst=-math.inf),
        psnr_low_db=_quantile(psnr, 0.1, worst=-math.inf),
        psnr_high_db=_quantile(psnr, 0.9, worst=-math.inf),
        baseline_psnr_db=_known_median(group, "baseline_psnr_db"),
    )


def _is_scored(group: Sequence[Record]) -> bool:
    """Say whether labels were compared with the truth, or failed, which needs no comparison."""
    claims = any(record.get("label_status") == "RECOVERED" for record in group)
    return not claims or any(record.get("label_linf") is not None for record in group)


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
    times = {(record["round"], record["client"]): record.get(key) for record in group}
    return [seconds for seconds in times.values() if seconds is not None]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _db(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
