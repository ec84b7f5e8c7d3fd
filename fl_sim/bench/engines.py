"""What an engine costs: its start, its first round and the later ones.

The scenario is `label-smoothing`, its attacks included, which take the same time on every engine.
Start and end are all that isn't a round: for `local` the data, for `ray` also Flower's SuperLink,
the server's process, Ray, and stopping them. PyTorch and Flower are imported before, in this
process; `ray` imports them again in each of its own, the clients' during its first round or before.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from fl_sim.flower.run import run
from fl_sim.leakage.records import read_lines
from fl_sim.scenario import Scenario

TITLE = (
    "The engines: `label-smoothing`, in seconds; start and end, the first round and the whole run "
    "are the least of the runs, a later round is the median of all"
)
NOTES = (
    "Start and end are all that isn't a round; of `ray`, that is mostly Flower's SuperLink, the "
    "server's process and Ray.",
)


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure; one row for each number of clients and engine."""
    rounds, runs = (3, 1) if quick else (10, 2)
    _measure(_scenario("local", 2, rounds, seed))  # whatever the first run imports
    for clients in (2,) if quick else (2, 10, 50):
        for engine in ("local", "ray"):
            scenario = _scenario(engine, clients, rounds, seed)
            yield {"clients": clients, "engine": f"`{engine}`"} | _row(
                [_measure(scenario) for _ in range(runs)]
            )


def _row(runs: Sequence[tuple[float, Sequence[float]]]) -> dict[str, object]:
    later = [second for _, (_, *seconds) in runs for second in seconds]
    return {
        "runs": len(runs),
        "rounds": len(runs[0][1]),
        "start and end": f"{min(whole - sum(seconds) for whole, seconds in runs):.1f}",
        "first round": f"{min(seconds[0] for _, seconds in runs):.2f}",
        "later round": f"{statistics.median(later):.2f}",
        "whole run": f"{min(whole for whole, _ in runs):.1f}",
    }


def _measure(scenario: Scenario) -> tuple[float, list[float]]:
    """Run once; return the seconds of the whole and of each round."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run(scenario, Path(folder) / "run")
        whole = time.perf_counter() - began
        lines = read_lines(Path(folder) / "run" / "rounds.jsonl")
    return whole, [line["seconds"] for line in lines if line["round"] > 0]


def _scenario(engine: str, clients: int, rounds: int, seed: int) -> Scenario:
    shipped = resources.files("scenarios") / "label-smoothing.toml"
    with resources.as_file(shipped) as path:
        changes = [f"engine={engine}", f"data.clients={clients}", f"rounds={rounds}"]
        return Scenario.load(path, changes, seed=seed)
