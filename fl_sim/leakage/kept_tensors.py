"""Recovered and true labels and images that stay in a run's folder, as NumPy archives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fl_sim.leakage.findings import Finding

LABELS = ("label", "candidates", "true_label", "mass", "true_mass", "guessed_mass")
IMAGES = ("image", "true_image", "originals")


def keep_tensors(
    folder: Path, finding: Finding, names: Collection[str] = (*LABELS, *IMAGES)
) -> None:
    """Write a finding's tensors of some names to an archive that is named after its place.

    `r0001-c0002-a0-e3.npz` is of round 1, client 2, attack 0 and example 3; an answer for a whole
    update has no example, as in `r0001-c0002-a0.npz`. Without any such tensor nothing is written.
    """
    arrays: dict[str, Any] = {
        name: tensor.float().numpy() for name, tensor in finding.tensors.items() if name in names
    }
    if not arrays:
        return
    r = finding.record
    example = "" if r.example is None else f"-e{r.example}"
    client = r.senders[0]  # no two means have a member in common
    np.savez(folder / f"r{r.round:04d}-c{client:04d}-a{r.attack}{example}.npz", **arrays)


def keep_some(
    folder: Path, findings: Sequence[Finding], *, labels: int, images: int | None
) -> None:
    """Write labels of some findings and images of some, each from as many clients as there are.

    Args:
        folder: where archives go.
        findings: of a round.
        labels: most findings whose labels, or class masses, are written, the truth beside them.
        images: most findings whose images are, likewise; None writes all.
    """
    with_label = [f for f in findings if f.tensors.keys() & {"label", "candidates", "mass"}]
    with_image = [f for f in findings if "image" in f.tensors]
    label_of = set(map(id, from_all_clients(with_label)[:labels]))
    image_of = set(map(id, from_all_clients(with_image)[:images]))
    for finding in findings:
        names = LABELS if id(finding) in label_of else ()
        keep_tensors(folder, finding, (*names, *(IMAGES if id(finding) in image_of else ())))


def from_all_clients(findings: Iterable[Finding]) -> list[Finding]:
    """Order findings so that the first few come from as many clients as there are."""
    findings = list(findings)
    places: Counter[tuple[tuple[int, ...], int | None]] = Counter()
    turns = []
    for finding in findings:
        whose = finding.record.senders, finding.record.attack
        turns.append(places[whose])
        places[whose] += 1
    order = sorted(range(len(findings)), key=turns.__getitem__)  # it is stable
    return [findings[index] for index in order]
