"""Where a scenario comes from: a shipped one's name, a file, or a Flower run configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attacks.registry import nearest
from fl_sim.errors import UserError
from fl_sim.scenario.changes import parse_change

if TYPE_CHECKING:  # what lists the shipped ones needn't load the validation
    from fl_sim.scenario import Scenario


def shipped_scenarios() -> dict[str, Traversable]:
    """Map names to the TOML files in the `scenarios` package."""
    files = {file.name: file for file in resources.files("scenarios").iterdir()}
    return {name[:-5]: files[name] for name in sorted(files) if name.endswith(".toml")}


def shipped_scenario(name: str) -> Traversable:
    """Return the TOML file of a shipped scenario.

    Raises:
        UserError: the name is unknown.
    """
    shipped = shipped_scenarios()
    if name not in shipped:
        raise UserError(f"unknown scenario {name!r}{nearest(name, shipped)}")
    return shipped[name]


@contextmanager
def scenario_file(source: str) -> Iterator[Path]:
    """Find the file that the user means, by its path or by a shipped scenario's name.

    Raises:
        UserError: it is neither a path nor a known name.
    """
    if source.endswith(".toml") or "/" in source or os.sep in source:
        yield Path(source)
        return
    with resources.as_file(shipped_scenario(source)) as path:
        yield path


def configured_scenario(run_config: Mapping[str, Any]) -> Scenario:
    """Return the scenario of a Flower run.

    Args:
        run_config: "scenario" is a scenario as JSON, a shipped scenario's name or a TOML file's
            path; "set" holds changes as in `--set`, with ";" between them.

    Raises:
        UserError: the scenario can't be found, or isn't valid.
    """
    from fl_sim.scenario import Scenario

    source = str(run_config["scenario"])
    changes = [part for part in str(run_config.get("set", "")).split(";") if part.strip()]
    if source.startswith("{"):
        return _from_json(source, tuple(changes))
    with scenario_file(source) as path:
        return Scenario.load(path, changes)


@lru_cache(maxsize=4)
def _from_json(text: str, changes: tuple[str, ...]) -> Scenario:
    """Validate a scenario once, not for every message of a run."""
    from fl_sim.scenario import Scenario

    return Scenario.parse(json.loads(text)).with_changes(dict(map(parse_change, changes)))
