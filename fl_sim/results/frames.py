"""Records as pandas DataFrames, whose columns have the same types whatever a run recorded."""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from fl_sim.errors import UserError
from fl_sim.leakage.leaks import Record
from fl_sim.leakage.records import LeakageRecord
from fl_sim.results.comparison import ComparedRun, Comparison
from fl_sim.results.measures import OF_ATTACKS, OF_RUNS, Measure

_TYPES = {"int": "Int64", "float": "float64", "bool": "boolean", "str": "string"}
_LEAKAGE = {
    field.name: _TYPES[str(field.type).removesuffix(" | None")]
    for field in dataclasses.fields(LeakageRecord)
}
_ROUNDS = {
    "round": "Int64",
    "accuracy": "float64",
    "loss": "float64",
    "epsilon": "float64",
    **{
        f"canary_{view}_{what}": "float64"
        for view in ("updates", "round", "model")
        for what in ("mu", "epsilon")
    },
    "replies": "Int64",
    "quarantined": "Int64",
    "seconds": "float64",
    "update_snr_db": "float64",
    "update_nonzero": "float64",
    "update_bytes": "Int64",
    "unchanged_by": "string",
}


def leakage_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row for each line of `leakage.jsonl`, with the columns of `LeakageRecord`."""
    return _frame(records, _LEAKAGE)


def rounds_frame(rounds: Sequence[Record]) -> pd.DataFrame:
    """Return one row for each line of `rounds.jsonl`; round 0 is the initial model."""
    return _frame(rounds, _ROUNDS)


def with_columns(frame: pd.DataFrame, values: Mapping[str, Any]) -> pd.DataFrame:
    """Put columns in front of others, each of one value."""
    front = {column: [value] * len(frame) for column, value in values.items()}
    return pd.concat([pd.DataFrame(front, index=frame.index), frame], axis="columns")


def key_columns(keys: Sequence[str], cells: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return for each varied key its column's name, and values that all have one type.

    Numbers and booleans stay what they are, unless others stand beside them: then all are written
    as JSON. A key that a frame has a column for is `scenario.<key>`.
    """
    columns = {}
    for key in keys:
        values = [cell[key] for cell in cells]
        kinds = {
            bool if isinstance(value, bool) else float
            for value in values
            if isinstance(value, bool | int | float)
        }
        is_plain = len(kinds) == 1 and all(
            value is None or isinstance(value, bool | int | float) for value in values
        )
        if not is_plain:
            values = [_text(value) for value in values]
        name = f"scenario.{key}" if key in _TAKEN else key
        columns[name] = values
    return columns


def runs_frame(comparison: Comparison) -> pd.DataFrame:
    """Return one row for each run and attack: the tidy table of a sweep.

    A run without an attack's records has one row; what it has no number for is missing.
    """
    columns = key_columns(comparison.keys, comparison.cells)
    rows = [
        {"run": run.name, "cell": run.cell}
        | {name: values[run.cell] for name, values in columns.items()}
        | _row(run, attack)
        for run in comparison.runs
        for attack in (*sorted(run.attacks),) or (None,)
    ]
    types = {
        "run": "string",
        "cell": "Int64",
        "seed": "Int64",
        "status": "string",
        "sentence": "string",
        "attack": "Int64",
        "title": "string",
        **{m.name: _column_type(m) for m in (*OF_RUNS, *_COUNTS, *OF_ATTACKS)},
    }
    frame = pd.DataFrame(rows)
    return frame.astype({name: kind for name, kind in types.items() if name in frame})


def cells_frame(comparison: Comparison) -> pd.DataFrame:
    """Return one row for each cell, attack and number: mean, median and 95 % interval over runs."""
    columns = key_columns(comparison.keys, comparison.cells)
    rows = []
    for attack in (None, *comparison.attacks):
        for measure in OF_RUNS if attack is None else OF_ATTACKS:
            for cell in range(len(comparison.cells)):
                found = comparison.number(cell, attack, measure.name)
                if found is not None:
                    keys = {name: values[cell] for name, values in columns.items()}
                    told = {"attack": attack, "measure": measure.name}
                    rows.append({"cell": cell, **keys, **told, **dataclasses.asdict(found)})
    names = ["cell", *columns, "attack", "measure", "runs", "mean", "median", "low", "high"]
    frame = pd.DataFrame(rows, columns=names)
    floats = dict.fromkeys(("mean", "median", "low", "high"), "float64")
    return frame.astype({"attack": "Int64", "runs": "Int64", "measure": "string", **floats})


class Exported(abc.ABC):
    """What comes as several data frames, and leaves as one file each."""

    def to_csv(self, folder: str | Path) -> list[Path]:
        """Write each data frame into a folder, as in `leakage.csv`; return the files."""
        return write_frames(self._frames(), Path(folder), as_parquet=False)

    def to_parquet(self, folder: str | Path) -> list[Path]:
        """Write the same as Parquet.

        Raises:
            UserError: pyarrow isn't installed.
        """
        return write_frames(self._frames(), Path(folder), as_parquet=True)

    @abc.abstractmethod
    def _frames(self) -> dict[str, pd.DataFrame]:
        """Return the data frames by name."""


def write_frames(
    frames: Mapping[str, pd.DataFrame], folder: Path, *, as_parquet: bool
) -> list[Path]:
    """Write frames as `<name>.csv` or `<name>.parquet`, and return the files.

    Raises:
        UserError: Parquet is asked for and pyarrow isn't installed.
    """
    if as_parquet and find_spec("pyarrow") is None:
        raise UserError("Parquet needs the package pyarrow: pip install 'fl-sim[parquet]'")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, frame in frames.items():
        path = folder / f"{name}.{'parquet' if as_parquet else 'csv'}"
        if as_parquet:
            frame.to_parquet(path, index=False)
        else:
            frame.to_csv(path, index=False, lineterminator="\n")
        written.append(path)
    return written


_COUNTS = (Measure("examples", "Examples", "count"), Measure("updates", "Updates", "count"))
_TAKEN = {*_LEAKAGE, *_ROUNDS, "run", "cell"} | {m.name for m in (*OF_RUNS, *OF_ATTACKS)} - {
    "rounds"
}


def _frame(lines: Iterable[Record], types: Mapping[str, str]) -> pd.DataFrame:
    lines = list(lines)
    others = dict.fromkeys(key for line in lines for key in line if key not in types)
    frame = pd.DataFrame.from_records(lines, columns=[*types, *others])
    return frame.astype(dict(types))


def _row(run: ComparedRun, attack: int | None) -> dict[str, Any]:
    numbers = {} if attack is None else run.attacks[attack]
    unended = "failed" if run.sentence else "unfinished"
    return {
        "seed": run.seed,
        "status": "finished" if run.is_finished else unended,
        "sentence": run.sentence,
        **{m.name: run.numbers.get(m.name) for m in OF_RUNS},
        "attack": attack,
        "title": None if attack is None else run.titles[attack],
        **{m.name: numbers.get(m.name) for m in (*_COUNTS, *OF_ATTACKS)},
    }


def _column_type(measure: Measure) -> str:
    return "Int64" if measure.unit == "count" else "float64"


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)
