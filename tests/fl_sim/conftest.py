"""A federation so small that a run takes a fraction of a second, and what a run leaves behind."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fl_sim.cli import main  # here, since rich draws from `random` when it is imported
from fl_sim.scenario import Scenario

HERE = Path(__file__).parent
Tiny = Callable[..., Scenario]
OutcomeOf = Callable[[Path], dict[str, str | bytes]]
FlSim = Callable[..., Any]


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


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def fl_sim(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[FlSim]:
    """Return a function that runs the command line in this process."""

    def command(*arguments: str | Path) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["fl-sim", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return Ended(int(exit_.value.code or 0), *capsys.readouterr())

    monkeypatch.setattr(os, "environ", dict(os.environ))
    loggers = [logging.getLogger(name) for name in ("fl_sim", "flwr")]
    before = [(list(logger.handlers), logger.level) for logger in loggers]
    yield command
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.level = handlers, level


def _outcome(folder: Path) -> dict[str, str | bytes]:
    outcome: dict[str, str | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".jsonl":
            outcome[name] = re.sub(r'"(\w+_)?seconds": [^,}]+', "", path.read_text())
        elif name.startswith(("checkpoint/", "images/")):
            outcome[name] = path.read_bytes()
    return outcome
