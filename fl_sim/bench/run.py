"""Run the benchmarks of a suite and write their tables and figures."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from fl_sim.bench.defense_cards import write_cards
from fl_sim.bench.table import write_table
from fl_sim.errors import UserError
from fl_sim.threads import one_thread

SUITES = {
    "labels": (
        "labels",
        "label_speed",
        "label_noise",
        "label_clipping",
        "label_training",
        "label_features",
        "label_batches",
        "label_mass",
    ),
    "defenses": (
        "defense_strengths",
        "defense_mixes",
        "defense_rounds",
        "defense_grid",
        "canaries",
        "secure_aggregation",
    ),
    "images": (
        "image_batches",
        "image_masks",
        "image_steps",
        "image_steps_limits",
        "image_batch_features",
        "image_convolutions",
        "image_matching",
        "matching_speed",
        "matching_devices",
        "matching_quality",
        "matching_restarts",
        "matching_networks",
        "matching_batches",
    ),
    "rounds": ("rounds",),
    "simulator": ("audit_overhead", "costs", "engines", "leakage", "leakage_noise", "privacy"),
}
"""Suite -> its benchmarks, modules of `fl_sim.bench` with `TITLE`, `NOTES` and `rows`."""


def run_suite(
    suite: str, *, only: tuple[str, ...], quick: bool, seed: int, folder: Path
) -> Iterator[tuple[str, str]]:
    """Run benchmarks one after another, on one thread.

    Args:
        suite: a key of `SUITES`.
        only: some of its benchmarks; empty for all.
        quick: whether to measure a small part, to see that it runs.
        seed: of all draws.
        folder: where tables and figures go.

    Yields:
        After each benchmark, its name and its table as Markdown. Of the defenses, cards follow.

    Raises:
        UserError: a name in `only` isn't one of the suite's.
    """
    for name in only:
        if name not in SUITES[suite]:
            known = ", ".join(SUITES[suite])
            raise UserError(f"--only must be one of {suite}'s ({known}), found {name!r}")
    for name in only or SUITES[suite]:
        module = importlib.import_module(f"fl_sim.bench.{name}")
        with one_thread():
            rows = list(module.rows(quick=quick, seed=seed))
        command = f"fl-sim bench {suite}{' --quick' if quick else ''} --only {name}"
        notes = [*module.NOTES, *([module.summary(rows)] if hasattr(module, "summary") else ())]
        text = write_table(name, module.TITLE, command, seed, rows, notes=notes, folder=folder)
        if hasattr(module, "figure"):
            module.figure(rows).savefig(folder / f"{name}.png", dpi=120)
        if hasattr(module, "gallery"):
            module.gallery(seed).savefig(folder / f"{name}_pictures.png", dpi=120)
        yield name, text
    if suite == "defenses":
        write_cards(folder)
