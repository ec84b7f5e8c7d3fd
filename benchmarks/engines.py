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
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from fl_sim.bench.table import write_table
from fl_sim.records import read_lines
from fl_sim.scenario import Scenario
from fl_sim.simulation import run

CLIENTS, ROUNDS, RUNS = (2, 10, 50), 10, 2
COMMAND = "python -m benchmarks engines"


def main() -> str:
    """Measure, and return the table."""
    with tempfile.TemporaryDirectory() as folder:
        run(_scenario("local", 2), Path(folder) / "run")  # whatever the first run imports
    rows = [_row(engine, clients) for clients in CLIENTS for engine in ("local", "ray")]
    title = (
        f"The engines: `label-smoothing` for {ROUNDS} rounds; the least of {RUNS} runs, for the "
        "later rounds the median of all, in seconds"
    )
    return write_table("engines", title, COMMAND, 0, rows)


def _row(engine: str, clients: int) -> Mapping[str, object]:
    starts, firsts, later, wholes = [], [], [], []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            run(_scenario(engine, clients), Path(folder) / "run")
            wholes.append(time.perf_counter() - began)
            lines = read_lines(Path(folder) / "run" / "rounds.jsonl")
        seconds = [line["seconds"] for line in lines[1:]]
        starts.append(wholes[-1] - sum(seconds))
        firsts.append(seconds[0])
        later += seconds[1:]
    return {
        "clients": clients,
        "engine": f"`{engine}`",
        "start and end": f"{min(starts):.1f}",
        "first round": f"{min(firsts):.2f}",
        "later round": f"{statistics.median(later):.2f}",
        "whole run": f"{min(wholes):.1f}",
    }


def _scenario(engine: str, clients: int) -> Scenario:
    shipped = resources.files("scenarios") / "label-smoothing.toml"
    with resources.as_file(shipped) as path:
        changes = [f"engine={engine}", f"data.clients={clients}", f"rounds={ROUNDS}"]
        return Scenario.load(path, changes)
