"""What runs are compared by: the same numbers of each run, whatever it attacked.

The page of a single run grades images by the highest level that they reach; here levels are fixed,
so that runs stand on one scale.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fl_sim.leakage.leaks import IMAGE_LEVELS_DB, Leak, Record
from fl_sim.leakage.summary import AttackSummary, summarize, weighed

Values = dict[str, float | None]


@dataclass(frozen=True)
class Measure:
    """A number of a run.

    Attributes:
        name: its column in tables.
        title: in words.
        unit: "share" in [0, 1], "db", "seconds", "epsilon", "error" or "count".
        note: what it counts.
        of: of a share, the number that says how many it counts.
        guess: the number of a guess without any update, where there is one.
    """

    name: str
    title: str
    unit: str
    note: str = ""
    of: str | None = None
    guess: str | None = None


OF_ATTACKS = (
    Measure(
        "images_recognisable", "Images recognisable", "share", "PSNR of 20 dB or more", "examples"
    ),
    Measure(
        "images_close", "Images hardly different", "share", "PSNR of 30 dB or more", "examples"
    ),
    Measure(
        "images_identical",
        "Images identical to the eye",
        "share",
        "PSNR of 50 dB or more",
        "examples",
    ),
    Measure(
        "images_identified",
        "Images identified",
        "share",
        "the own image is the nearest of 1,000 others",
        "examples",
    ),
    Measure("images_tried", "Images attacked", "share", "by an attack that applies", "examples"),
    Measure("labels_tried", "Labels attacked", "share", "by an attack that applies", "examples"),
    Measure("labels_right", "Labels right", "share", "L∞ below 0.01", "examples"),
    Measure(
        "classes_right",
        "Classes right",
        "share",
        "the label’s largest class",
        "examples",
        "class_guess",
    ),
    Measure(
        "masses_right",
        "Class counts nearer than a guess",
        "share",
        "one for each update",
        "updates",
    ),
    Measure("images_vouched", "Images vouched for", "share", "as the attacker knows", "examples"),
    Measure("labels_vouched", "Labels vouched for", "share", "as the attacker knows", "examples"),
    Measure("false_claims", "Vouched for wrongly", "count"),
    Measure("class_guess", "Classes guessed without an update", "share"),
    Measure("psnr_db", "Median PSNR", "db", guess="baseline_psnr_db"),
    Measure("baseline_psnr_db", "Mean image’s PSNR", "db"),
    Measure("label_linf", "Median L∞ of labels", "error"),
    Measure("mass_tv", "Class mass off by", "share", "total variation", guess="mass_tv_chance"),
    Measure("mass_tv_chance", "Guessed class mass off by", "share"),
    Measure("attack_seconds", "Attack’s time", "seconds"),
)
"""Of each `[[attack]]`; where an example failed, it counts as not right."""

OF_RUNS = (
    Measure("accuracy", "Accuracy", "share", "on the server’s test images, after the last round"),
    Measure("loss", "Loss", "error"),
    Measure("epsilon", "Privacy ε", "epsilon"),
    Measure("update_snr_db", "Update over what defenses change", "db", "mean over rounds measured"),
    Measure("update_nonzero", "Entries sent that aren’t zero", "share"),
    Measure("update_bytes", "Bytes that a client sends", "count", "in a round, dense weights"),
    Measure("rounds", "Rounds", "count"),
    Measure("replies", "Replies", "count"),
    Measure("quarantined", "Replies left out", "count"),
    Measure("seconds", "Rounds’ time", "seconds"),
)
"""Of each run, after its last round."""


def of_attacks(records: Iterable[Record]) -> dict[int, Values]:
    """Return each attack's numbers over its records, all of `OF_ATTACKS`, "examples" and "updates".

    None stands for what an attack doesn't try, or what falls on a failed example.
    """
    records = list(records)
    groups: dict[int, list[Record]] = defaultdict(list)
    for record, weight in weighed(records):
        if record.get("attack") is not None:
            groups[record["attack"]] += [record] * weight
    return {one.attack: _values(one, groups[one.attack]) for one in summarize(records)}


def by_round(records: Iterable[Record]) -> dict[tuple[int, int], Values]:
    """Return each attack's numbers in each round, by (attack, round)."""
    rounds: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        rounds[record["round"]].append(record)
    return {
        (attack, server_round): values
        for server_round, lines in sorted(rounds.items())
        for attack, values in of_attacks(lines).items()
    }


def of_run(rounds: Sequence[Record]) -> Values:
    """Return a run's numbers after its last committed round: all of `OF_RUNS`."""
    if not rounds:
        return dict.fromkeys(measure.name for measure in OF_RUNS)
    last = rounds[-1]
    sums = {key: _sum(rounds, key) for key in ("replies", "quarantined", "seconds")}
    of_last = {key: last.get(key) for key in ("accuracy", "loss", "epsilon")}
    means = {key: _mean(rounds, key) for key in _MEASURED}
    return {**of_last, **means, "rounds": last["round"], **sums}


def _values(summary: AttackSummary, group: Sequence[Record]) -> Values:
    image, label, largest, mass = map(summary.leak, ("image", "label", "class", "mass"))
    is_scored = image is not None and image.right is not None
    identical, close, recognisable = (
        _share_from(group, level) if is_scored else None for level in IMAGE_LEVELS_DB
    )
    identified = sum(record.get("identified") is True for record in group) / len(group)
    claims = [leak for leak in (image, label) if leak is not None]
    return {
        "examples": summary.examples,
        "updates": len({(record["round"], record["client"]) for record in group}),
        "images_recognisable": recognisable,
        "images_close": close,
        "images_identical": identical,
        "images_identified": identified if is_scored else None,
        "images_tried": tried(group, "image") if image is not None else None,
        "labels_tried": tried(group, "label") if mass is None else None,  # counts are no labels
        "labels_right": _right(label),
        "classes_right": _right(largest),
        "masses_right": _right(mass),
        "images_vouched": None if image is None else image.vouched.value,
        "labels_vouched": None if label is None else label.vouched.value,
        "false_claims": sum(leak.false for leak in claims) if claims else None,
        "class_guess": None if largest is None or largest.right is None else largest.chance,
        "psnr_db": summary.psnr_db if image is not None else None,
        "baseline_psnr_db": summary.baseline_psnr_db,
        "label_linf": summary.median_linf,
        "mass_tv": summary.mass_tv,
        "mass_tv_chance": summary.mass_tv_chance,
        "attack_seconds": summary.total_seconds,
    }


def tried(group: Sequence[Record], part: str) -> float:
    """Return on which share of an attack's records it applied, and didn't raise.

    Args:
        group: the records; at least one.
        part: "label" or "image".
    """
    states = [record.get(f"{part}_status") for record in group]
    return sum(one not in (None, "NOT_APPLICABLE", "FAILED") for one in states) / len(group)


def _right(leak: Leak | None) -> float | None:
    return None if leak is None or leak.right is None else leak.right.value


def _share_from(group: Sequence[Record], level_db: float) -> float:
    return sum(bool((record.get("psnr_db") or 0.0) >= level_db) for record in group) / len(group)


def _sum(rounds: Sequence[Record], key: str) -> float:
    return math.fsum(line.get(key) or 0 for line in rounds)


_MEASURED = ("update_snr_db", "update_nonzero", "update_bytes")


def _mean(rounds: Sequence[Record], key: str) -> float | None:
    known = [line[key] for line in rounds if line.get(key) is not None]
    return math.fsum(known) / len(known) if known else None
