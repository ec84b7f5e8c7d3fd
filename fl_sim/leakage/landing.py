"""A round's findings come to the log as a whole, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fl_sim.leakage.findings import Finding
from fl_sim.leakage.kept_tensors import from_all_clients, keep_tensors
from fl_sim.leakage.records import LeakageRecord


def land(
    findings: Sequence[Finding], log: Callable[[list[str]], None], images: Path, *, most: int
) -> None:
    """Write findings down: records by (client, attack, example), and images of some.

    Args:
        findings: all of a round; of their images, the first are kept.
        log: appends lines, one for each record.
        images: where archives go.
        most: findings whose images are kept, of as many clients as there are.
    """
    records = sorted((finding.record for finding in findings), key=_place)
    if records:
        log([record.to_json() for record in records])
    shown = [f for f in findings if f.record.example is not None or "mass" in f.tensors]
    for finding in from_all_clients(shown)[:most]:
        keep_tensors(images, finding)


def _place(record: LeakageRecord) -> tuple[tuple[int, ...], int, bool, int]:
    """Return what orders the records of a round; rows without an example come last."""
    example = record.example
    return record.senders, record.attack or 0, example is None, example or 0
