"""What a client's reply must hold, and how replies are made alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

REAL = {np.dtype(t) for t in ("?", "b", "h", "i", "q", "B", "H", "I", "Q", "e", "f", "d")}
"""Types of what was sent as real numbers: averaging turns integers and booleans into floats, and
clients turn them back."""
LONGEST_NAME = 100
MOST_WEIGHT = 1e15
"""Largest weight of a reply: whole numbers are exact below, and no sum of some overflows."""
COMPLEX = {np.dtype(t) for t in ("F", "D")}


@dataclass(frozen=True, eq=False)
class Expected:
    """What a node was sent.

    Args:
        arrays: name -> its shape, whether it is complex, and where it is finite, None: everywhere.
    """

    arrays: Mapping[str, tuple[tuple[int, ...], bool, NDArray[np.bool_] | None]]

    @classmethod
    def of(cls, content: RecordDict, arrays: ArrayRecord) -> Expected:
        """Take the model's record out of a message to a node.

        Args:
            content: of the message.
            arrays: the global model's, by whose names its record is known.
        """
        records = content.array_records.values()
        sent = max(records, key=lambda r: len(r.keys() & arrays.keys()), default=arrays)
        found = {}
        for name, array in sent.items():
            values = np.asarray(array.numpy())
            finite = np.isfinite(values) if values.dtype.kind in "fc" else np.True_
            mask = None if finite.all() else np.asarray(finite)
            found[name] = tuple(array.shape), values.dtype.kind == "c", mask
        return cls(found)


def problem_of(reply: Message, expected: Expected, metrics: Sequence[str]) -> str | None:
    """Return what is wrong with a reply, in one sentence, or None.

    Args:
        reply: a client's.
        expected: what it was sent.
        metrics: that it must hold, the weight first.
    """
    if reply.has_error():
        return f"the client failed: {_first_line(reply.error.reason)}"
    records = reply.content.array_records
    if not records:
        return "it must hold an array record, found none"
    return _array_problem(records[_model_record(reply.content, expected)], expected) or (
        _metric_problem(reply.content, metrics)
    )


def align(
    replies: Sequence[Message], expected: Mapping[int, Expected], weight: str
) -> Iterator[str]:
    """Leave out of well-formed replies what not all of them hold, and name records alike.

    Strategies look records up by the first reply's names, and refuse all replies if one differs.

    Args:
        replies: changed, where they differ.
        expected: node -> what it was sent.
        weight: the metric that replies are weighed by.

    Yields:
        Sentences that say what was left out.
    """
    parts = [_Parts.of(r, _expected_of(r, expected), weight) for r in replies]
    names = max((p.names for p in parts), key=[p.names for p in parts].count)
    common = [set.intersection(*(set(p.entries[i]) for p in parts)) for i in range(3)]
    for index, what in enumerate(("array", "metric", "record")):
        every = {key for p in parts for key in p.entries[index]}
        every -= common[index].union(*(p.own for p in parts))
        for name in sorted({key[0] for key in every}):
            yield f"{what} {name[:LONGEST_NAME]!r} isn't alike in all replies, and is left out"
    for reply, part in zip(replies, parts, strict=True):
        own = [common[0] | part.own, *common[1:]]
        kept = [
            {key[0]: value for key, value in entries.items() if key in shared}
            for entries, shared in zip(part.entries, own, strict=True)
        ]
        if part.names != names or not part.holds_just(own):
            arrays, metrics, others = kept
            reply.content = RecordDict(
                {names[0]: ArrayRecord(arrays), names[1]: MetricRecord(metrics), **others}
            )


def _expected_of(reply: Message, expected: Mapping[int, Expected]) -> Expected:
    return expected.get(reply.metadata.src_node_id, Expected({}))


Key = tuple[str, str]
"""A name, and what kind of entry it stands for."""


@dataclass(frozen=True, eq=False)
class _Parts:
    """A reply's content.

    Args:
        names: of the model's record and of the metrics' with the weight.
        entries: the arrays of the one, the metrics of the other, and all other records.
        own: the arrays that the node was sent; strategies may send nodes different ones.
    """

    names: tuple[str, str]
    entries: tuple[Mapping[Key, Any], Mapping[Key, Any], Mapping[Key, Any]]
    own: set[Key]

    @classmethod
    def of(cls, reply: Message, expected: Expected, weight: str) -> _Parts:
        """Take a well-formed reply apart."""
        content = reply.content
        names = _model_record(content, expected), _metric_record(content, weight)
        arrays = {}
        for name, array in content.array_records[names[0]].items():
            is_sound = name in expected.arrays or _is_sound(array)
            # What nobody sent and can't be averaged is like nothing in another reply.
            kind = str(array.shape) if is_sound else f"of node {reply.metadata.src_node_id}"
            arrays[name, kind] = array
        # Lists are added up entry by entry.
        metrics = {
            (name, f"list of {len(value)}" if isinstance(value, list) else "number"): value
            for name, value in content.metric_records[names[1]].items()
        }
        others = {
            (name, type(record).__name__): record
            for name, record in content.items()
            if name not in names
        }
        own = {key for key in arrays if key[0] in expected.arrays}
        return cls(names, (arrays, metrics, others), own)

    def holds_just(self, common: Sequence[set[Key]]) -> bool:
        """Say whether there is nothing beside what all replies hold."""
        return all(own.keys() == kept for own, kept in zip(self.entries, common, strict=True))


def _model_record(content: RecordDict, expected: Expected) -> str:
    """Return the name of the array record with the most of what was sent, the first of those."""
    records = content.array_records
    return max(records, key=lambda name: len(records[name].keys() & expected.arrays.keys()))


def _metric_record(content: RecordDict, weight: str) -> str:
    """Return the name of the metric record with the weight, or of the first."""
    records = content.metric_records
    return next((name for name in records if weight in records[name]), next(iter(records)))


def _array_problem(record: ArrayRecord, expected: Expected) -> str | None:
    for name, (shape, _, _) in expected.arrays.items():
        if name not in record:
            return f"array {name!r} is missing"
        if tuple(record[name].shape) != shape:
            return f"array {name!r} must have the shape {shape}, found {tuple(record[name].shape)}"
    for name, (shape, is_complex, finite) in expected.arrays.items():
        try:
            values = np.asarray(record[name].numpy())
        except Exception as error:  # a client's bytes can make NumPy raise anything
            return f"array {name!r} can't be read: {_first_line(str(error))}"
        if values.shape != shape or values.dtype not in (REAL | COMPLEX if is_complex else REAL):
            return (
                f"array {name!r} must hold {shape} numbers of up to 64 bits, found "
                f"{values.shape} of {values.dtype}"
            )
        wrong = ~np.isfinite(values)
        if wrong.any() if finite is None else (wrong & finite).any():
            return f"array {name!r} has NaN or infinite entries"
    return None


def _is_sound(array: Array) -> bool:
    """Say whether an array that wasn't sent is finite numbers of the shape that it states."""
    try:
        values = np.asarray(array.numpy())
    except Exception:  # as above
        return False
    is_numeric = values.dtype in REAL | COMPLEX and values.shape == tuple(array.shape)
    return bool(is_numeric and np.isfinite(values).all())


def _metric_problem(content: RecordDict, needed: Sequence[str]) -> str | None:
    if not content.metric_records:
        return "it must hold a metric record, found none"
    weight = needed[0]
    record = content.metric_records[_metric_record(content, weight)]
    for name in needed:
        value = record.get(name)
        if not isinstance(value, (int, float)):
            return f"metric {name!r} must be a number, found {value}"
        rule = None if np.isfinite(value) else "finite"
        if name == weight and not (rule is None and value > 0):
            rule = "above 0 and finite"
        elif name == weight and value > MOST_WEIGHT:
            rule = f"at most {MOST_WEIGHT:g}"
        if rule is not None:
            return f"metric {name!r} must be {rule}, found {value}"
    return None


def _first_line(text: str | None) -> str:
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"
