"""Why something wasn't recovered, over a whole run."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fl_sim.leakage.leaks import Record
from fl_sim.leakage.summary import weighed

_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)", re.IGNORECASE)


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


def reasons(records: Iterable[Record]) -> list[Reason]:
    """Count why labels, images and whole replies weren't recovered, the most frequent first.

    Reasons that differ only in their numbers are one; a number that differs is written as `…`.
    """
    counts: Counter[tuple[int | None, str, str, str]] = Counter()
    for record, weight in weighed(records):
        attack = record.get("attack")
        for stage in ("label", "image"):
            status = record.get(f"{stage}_status")
            is_reply = attack is None and stage == "label"
            if is_reply or status not in (None, "RECOVERED"):
                name = "reply" if is_reply else record.get(f"{stage}_attack") or stage
                reason = record.get(f"{stage}_reason") or "no reason was recorded"
                counts[attack, name, status or "FAILED", reason] += weight
    alike: dict[tuple[int | None, str, str, str], list[str]] = defaultdict(list)
    totals: Counter[tuple[int | None, str, str, str]] = Counter()
    for (attack, name, status, reason), count in counts.items():
        key = (attack, name, status, _NUMBER.sub("…", reason))
        alike[key].append(reason)
        totals[key] += count
    return [Reason(*key[:3], _merged(alike[key]), count) for key, count in totals.most_common()]


def _merged(alike: Sequence[str]) -> str:
    """Write reasons that differ only in numbers as one."""
    columns = zip(*(_NUMBER.findall(reason) for reason in alike), strict=True)
    numbers = iter([column[0] if len({*column}) == 1 else "…" for column in columns])
    return _NUMBER.sub(lambda _: next(numbers), alike[0])
