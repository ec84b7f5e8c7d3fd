"""The classes that attacks counted in whole updates, for the page of an audit of one's own app."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_sim.leakage.summary import AttackSummary
from fl_sim.report.examples import kept_paths, read_arrays
from fl_sim.wording import listing

CLASSES_SHOWN = 12


@dataclass(frozen=True)
class Counted:
    """What an attack counted in a client's updates: each class's mass, summed over `updates`."""

    attack: str
    client: int
    updates: int
    classes: str


def counted_classes(
    folder: Path, summaries: Iterable[AttackSummary], names: Sequence[str]
) -> list[Counted]:
    """Return a line for each attack that counts and each client.

    Args:
        folder: `images/` of a run folder.
        summaries: of the run's attacks.
        names: what the classes are called; empty where that isn't known.
    """
    masses: dict[tuple[int, int], list[NDArray[Any]]] = defaultdict(list)
    for key, path in sorted(kept_paths(folder, of_updates=True).items()):
        mass = read_arrays(path).get("mass")
        if mass is not None and np.isfinite(mass).all():
            masses[key.attack, key.client].append(mass)
    titles = {summary.attack: summary.title for summary in summaries}
    return [
        Counted(titles[attack], client, len(found), _listed(np.sum(found, axis=0), names))
        for (attack, client), found in sorted(masses.items())
        if attack in titles
    ]


def _listed(mass: NDArray[Any], names: Sequence[str]) -> str:
    """List the classes with the largest mass, as in `7 × 4.0, 3 × 2.1`."""
    present = [int(k) for k in np.argsort(-mass, kind="stable") if mass[k] > 0.05 * mass.max()]
    shown = [f"{names[k] if names else k} × {mass[k]:.1f}" for k in present]
    return listing(shown, CLASSES_SHOWN)
