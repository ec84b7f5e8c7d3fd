"""What a sweep varies: keys and their values, the cells that they make, and the runs of a cell."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fl_sim.errors import UserError
from fl_sim.scenario import Scenario
from fl_sim.scenario.changes import parse_change

SEED = "seed"


@dataclass(frozen=True)
class Axis:
    """A key of the scenario and the values that it takes, in order."""

    key: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str) -> Axis:
        """Read `key.path=a,b,c`; each value as `--set` reads it, commas in brackets its own.

        Raises:
            UserError: there is no key, or no value between two commas, or one comes twice.

        Example:
            >>> Axis.parse("defense.0.smoothing=0.1,[0.0, 0.5]")
            Axis(key='defense.0.smoothing', values=(0.1, [0.0, 0.5]))
        """
        try:
            key, _ = parse_change(text)
            parts = list(_split(text.partition("=")[2]))
            if not all(parts):
                raise UserError(f"{key} must have a value between commas, found {text!r}")
            values = [parse_change(f"{key}={part}")[1] for part in parts]
        except UserError as error:
            raise UserError(f"--over {error}") from error
        for index, value in enumerate(values):
            if value in values[:index]:
                raise UserError(
                    f"--over {key} must name each value once, found {parts[index]} twice"
                )
        return cls(key, tuple(values))


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Args:
        cell: which combination of values, counted from 0.
        values: key -> value, of what the sweep varies.
        scenario: what to run; its seed is the run's.
    """

    cell: int
    values: Mapping[str, Any]
    scenario: Scenario

    @property
    def name(self) -> str:
        """The run folder's name: it stays the same when seeds are added."""
        return f"cell-{self.cell}-seed-{self.scenario.seed}"


@dataclass(frozen=True)
class Grid:
    """A scenario, and what is varied in it.

    Args:
        base: the scenario.
        axes: varied keys, the first one slowest.
        zipped: take the axes' first values together, then their second ones; otherwise each with
            each.
        seeds: of each cell's runs.

    Raises:
        UserError: a key comes twice, within another or is the seed; zipped axes differ in length.
    """

    base: Scenario
    axes: tuple[Axis, ...]
    zipped: bool
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        keys = [axis.key for axis in self.axes]
        for key, other in itertools.permutations(keys, 2):
            if key == other or key.startswith(f"{other}."):
                raise UserError(f"--over {key} must be no part of another --over, found {other}")
        if SEED in keys:
            raise UserError(f"--over {SEED}: --seeds says how many; --set seed= where they start")
        lengths = {axis.key: len(axis.values) for axis in self.axes}
        if self.zipped and len({*lengths.values()}) > 1:
            found = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            raise UserError(f"--zip takes as many values of each key, found: {found}")

    @classmethod
    def of(cls, base: Scenario, axes: Sequence[Axis], *, zipped: bool, seeds: int) -> Grid:
        """Return the grid whose seeds count up from the scenario's.

        Raises:
            UserError: as the class does.
        """
        return cls(base, tuple(axes), zipped, tuple(range(base.seed, base.seed + seeds)))

    def cells(self) -> list[dict[str, Any]]:
        """Return the combinations: key -> value; one that is empty where nothing is varied."""
        keys = [axis.key for axis in self.axes]
        values = [axis.values for axis in self.axes]
        combined = zip(*values, strict=True) if self.zipped and keys else itertools.product(*values)
        return [dict(zip(keys, cell, strict=True)) for cell in combined]

    def runs(self) -> list[PlannedRun]:
        """Return all runs; all cells with the first seed come first.

        Raises:
            UserError: a cell is no valid scenario, or the same one as another.
        """
        cells = self.cells()
        scenarios = [self._scenario(cell) for cell in cells]
        seen: dict[str, dict[str, Any]] = {}
        for cell, scenario in zip(cells, scenarios, strict=True):
            twin = seen.setdefault(scenario.to_json(), cell)
            if twin is not cell:
                raise UserError(f"{describe(cell)} and {describe(twin)} make the same scenario")
        return [
            PlannedRun(index, cell, scenario.with_changes({SEED: seed}))
            for seed in self.seeds
            for index, (cell, scenario) in enumerate(zip(cells, scenarios, strict=True))
        ]

    def _scenario(self, cell: Mapping[str, Any]) -> Scenario:
        try:
            return self.base.with_changes(cell)
        except UserError as error:
            raise UserError(f"--over {describe(cell)}: {error}") from error


def describe(cell: Mapping[str, Any]) -> str:
    """Write a cell as in `client.lr=0.1, rounds=5`."""
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in cell.items())


def _split(text: str) -> Iterator[str]:
    """Split at commas that stand in no brackets and no quotes."""
    depth, quote, part = 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0:
            yield part.strip()
            part = ""
            continue
        part += letter
    yield part.strip()
