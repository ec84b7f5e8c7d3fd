"""What a reader must know before believing a defense's numbers: flags, of a run or of a cell.

Their only home: the page of a run, the page of a sweep and the tables of benchmarks show these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from defenses import DEFENSES
from fl_sim.leakage.leaks import IMAGE_LEVELS_DB, TOLERANCE, Record, Share
from fl_sim.leakage.summary import weighed
from fl_sim.results.measures import tried
from fl_sim.wording import count, listing

MOST_NAMED = 4
UNCHANGED, WORSE, BELOW = "update unchanged", "aware is worse", "below the mean image"
UNMODELLED, RANDOM, UNTRIED = "known, not modelled", "random", "not attacked"
MEANINGS = {
    UNCHANGED: "the defense changed no number of what leaves the client, in some round measured",
    WORSE: "who knows the defense gets significantly less than who doesn’t, so the attack is weak",
    BELOW: "an attack’s images are mostly worse than the mean image: it tells nothing of a defense",
    UNMODELLED: "the attacker is told something that no attack makes use of: others may",
    UNTRIED: "of attacks on labels, or on images, none applies: finding nothing is no evidence",
    RANDOM: "the defense draws: numbers are averages over the seeds",
}
"""Each kind of flag, and what it means."""


@dataclass(frozen=True)
class Flag:
    """Something that a number alone doesn't tell.

    Args:
        kind: in a few words, for tables.
        sentence: the whole of it.
    """

    kind: str
    sentence: str


@dataclass(frozen=True)
class Pair:
    """What attackers of both kinds got right by the same attacks.

    Args:
        attack: its title.
        what: "labels", "classes", "images" or "class counts".
        unaware: of all examples, or updates.
        aware: likewise.
    """

    attack: str
    what: str
    unaware: Share
    aware: Share


@dataclass(frozen=True)
class Evidence:
    """What a run has to say of flags; that of several runs adds up.

    Args:
        pairs: attacks that both kinds of attackers ran.
        below: attack -> its images, and of them those worse than the mean image, as a share.
        tried: "label" and "image" -> of the records of attacks on them, those of one that applies.
        unused: facts that no attack of an aware attacker takes into account.
        measured: in how many rounds the defenses were.
        unchanged: defense -> in how many of them it changed nothing.
        random: defenses that draw.
    """

    pairs: tuple[Pair, ...] = ()
    below: Mapping[str, Share] | None = None
    tried: Mapping[str, Share] | None = None
    unused: frozenset[str] = frozenset()
    measured: int = 0
    unchanged: Mapping[str, int] | None = None
    random: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, scenario: Mapping[str, Any], records: Sequence[Record], rounds: Sequence[Record]
    ) -> Evidence:
        """Take it from what a run wrote down.

        Args:
            scenario: as `scenario.json` holds it.
            records: the lines of `leakage.jsonl`.
            rounds: the lines of `rounds.jsonl`.
        """
        groups: dict[int, list[Record]] = defaultdict(list)
        for record, weight in weighed(records):
            if record.get("attack") is not None:
                groups[record["attack"]] += [record] * weight
        measured = [line for line in rounds if "unchanged_by" in line]
        unchanged: dict[str, int] = defaultdict(int)
        for line in measured:
            for name in (line["unchanged_by"] or "").split("+"):
                if name:
                    unchanged[name] += 1
        return cls(
            tuple(_pairs(groups, scenario.get("attack") or [])),
            {_title(group[0]): _below(group) for group in groups.values() if _below(group).of},
            _tried(groups),
            _unused(groups),
            len(measured),
            unchanged,
            tuple(_random(scenario.get("defense") or [])),
        )


def flags(found: Sequence[Evidence]) -> list[Flag]:
    """Return the flags of runs that differ in their seed alone; none for none."""
    if not found:
        return []
    parts = (_of_unchanged, _of_untried, _of_pairs, _of_baselines, _of_facts, _of_draws)
    return [flag for part in parts for flag in part(found)]


def _of_unchanged(found: Sequence[Evidence]) -> list[Flag]:
    measured = sum(one.measured for one in found)
    times: dict[str, int] = defaultdict(int)
    for one in found:
        for name, unchanged in (one.unchanged or {}).items():
            times[name] += unchanged
    return [
        Flag(
            UNCHANGED,
            f"{name} changed no number of the update in {unchanged} of the "
            f"{count(measured, 'round')} in which it was measured.",
        )
        for name, unchanged in times.items()
    ]


def _of_untried(found: Sequence[Evidence]) -> list[Flag]:
    result = []
    for part in ("label", "image"):
        total = Share.total(one.tried[part] for one in found if one.tried and part in one.tried)
        if total.of and 2 * total.count <= total.of:
            sentence = (
                f"The best attack on {part}s that was run applies to {total.count} of "
                f"{count(total.of, 'example')}: finding little there is no evidence for the "
                "defense."
            )
            result.append(Flag(UNTRIED, sentence))
    return result


def _of_pairs(found: Sequence[Evidence]) -> list[Flag]:
    sums: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for one in found:
        for pair in one.pairs:
            sums[pair.attack, pair.what].append(pair)
    result = []
    for (attack, what), pairs in sums.items():
        unaware = Share.total(pair.unaware for pair in pairs)
        aware = Share.total(pair.aware for pair in pairs)
        if unaware.interval[0] > aware.interval[1]:
            sentence = (
                f"{attack} gets fewer {what} right when it knows the defense ({aware.count} of "
                f"{aware.of}) than when it doesn’t ({unaware.count} of {unaware.of}): what it "
                "knows misleads it, and the worse of both is what counts."
            )
            result.append(Flag(WORSE, sentence))
    return result


def _of_baselines(found: Sequence[Evidence]) -> list[Flag]:
    sums: dict[str, list[Share]] = defaultdict(list)
    for one in found:
        for attack, share in (one.below or {}).items():
            sums[attack].append(share)
    result = []
    for attack, shares in sums.items():
        total = Share.total(shares)
        if 2 * total.count > total.of:
            sentence = (
                f"{attack}: {total.count} of {count(total.of, 'image')} are worse than the mean "
                "image, which needs no update: it reconstructs nothing here, and says nothing of "
                "the defense."
            )
            result.append(Flag(BELOW, sentence))
    return result


def _of_facts(found: Sequence[Evidence]) -> list[Flag]:
    unused = sorted(frozenset().union(*(one.unused for one in found)))
    if not unused:
        return []
    named = listing(unused, MOST_NAMED)
    sentence = f"No attack of the aware attacker makes use of what it knows: {named}."
    return [Flag(UNMODELLED, sentence)]


def _of_draws(found: Sequence[Evidence]) -> list[Flag]:
    names = dict.fromkeys(name for one in found for name in one.random)
    if not names:
        return []
    who = f"{', '.join(names)} {'draws' if len(names) == 1 else 'draw'} at random"
    if len(found) == 1:
        return [Flag(RANDOM, f"{who}: these are the numbers of one seed’s draws.")]
    return [Flag(RANDOM, f"{who}: numbers are averaged over {len(found)} seeds.")]


def _pairs(
    groups: Mapping[int, Sequence[Record]], attacks: Sequence[Mapping[str, Any]]
) -> list[Pair]:
    """Return what attacks that differ in the attacker alone got right."""
    found = []
    for index, attack in enumerate(attacks):
        if attack.get("attacker") != "unaware":
            continue
        twin = {**attack, "attacker": "aware"}
        other = next((i for i, one in enumerate(attacks) if dict(one) == twin), None)
        if other is None or not (groups.get(index) and groups.get(other)):
            continue
        for what, is_right in _RIGHT.items():
            unaware, aware = (
                Share(sum(map(is_right, groups[i])), len(groups[i])) for i in (index, other)
            )
            if unaware.count or aware.count:
                found.append(Pair(_name(groups[index][0]), what, unaware, aware))
    return found


def _has_label(record: Record) -> bool:
    error = record.get("label_linf")
    return error is not None and error < TOLERANCE


def _has_image(record: Record) -> bool:
    return (record.get("psnr_db") or 0.0) >= IMAGE_LEVELS_DB[-1]


_RIGHT: Mapping[str, Callable[[Record], bool]] = {
    "labels": _has_label,
    "classes": lambda record: record.get("label_top1") is True,
    "images": _has_image,
}


def _below(group: Sequence[Record]) -> Share:
    known = [
        (record["psnr_db"], record["baseline_psnr_db"])
        for record in group
        if record.get("psnr_db") is not None and record.get("baseline_psnr_db") is not None
    ]
    return Share(sum(psnr < baseline for psnr, baseline in known), len(known))


def _tried(groups: Mapping[int, Sequence[Record]]) -> dict[str, Share]:
    """Return of labels and images the share of the attack that applies to most."""
    result = {}
    for part in ("label", "image"):
        shares = [
            Share(round(tried(group, part) * len(group)), len(group))
            for group in groups.values()
            if any(record.get(f"{part}_attack") for record in group)
            and not any(record.get("mass_tv") is not None for record in group)
        ]
        if shares:
            result[part] = max(shares, key=lambda share: share.value)
    return result


def _unused(groups: Mapping[int, Sequence[Record]]) -> frozenset[str]:
    """Return the facts that every aware attack leaves unused."""
    aware = [group[0] for group in groups.values() if group[0].get("attacker") == "aware"]
    told = [frozenset((one.get("unused_facts") or "").split(", ")) - {""} for one in aware]
    return frozenset.intersection(*told) if told else frozenset()


def _random(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the defenses that draw; one that can't be built here is left out."""
    found = []
    for stage in stages:
        try:
            options = {key: value for key, value in stage.items() if key != "name"}
            defense = DEFENSES.build(stage["name"], **options)
        except (ValueError, KeyError):
            continue
        if getattr(defense, "is_random", True):
            found.append(stage["name"])
    return found


def _name(record: Record) -> str:
    return " + ".join(r for r in (record.get("label_attack"), record.get("image_attack")) if r)


def _title(record: Record) -> str:
    return f"{_name(record)} ({record.get('attacker')})"
