"""A federation so small that a run takes a fraction of a second, and what a run leaves behind."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fl_sim.scenario import Scenario

HERE = Path(__file__).parent
Tiny = Callable[..., Scenario]
OutcomeOf = Callable[[Path], dict[str, str | bytes]]


@pytest.fixture(scope="session")
def tiny_file() -> Iterator[Path]:
    """Return the tiny scenario's file, and let the module `third_party` that it names be found."""
    sys.path.insert(0, str(HERE))
    yield HERE / "tiny.toml"
    sys.path.remove(str(HERE))


@pytest.fixture(scope="session")
def tiny(tiny_file: Path) -> Tiny:
    """Return a function from overrides, as in "client.lr=0.5", to the tiny scenario with them."""
    return lambda *overrides: Scenario.load(tiny_file, overrides)


@pytest.fixture(scope="session")
def outcome_of() -> OutcomeOf:
    """Return a function from a run folder to all that a seed decides: records, weights, images."""
    return _outcome


def _outcome(folder: Path) -> dict[str, str | bytes]:
    outcome: dict[str, str | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".jsonl":
            outcome[name] = re.sub(r'"(\w+_)?seconds": [^,}]+', "", path.read_text())
        elif name.startswith(("checkpoint/", "images/")):
            outcome[name] = path.read_bytes()
    return outcome
