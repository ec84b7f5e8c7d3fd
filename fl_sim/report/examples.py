"""The examples that the report shows: images and labels, recovered beside true."""

from __future__ import annotations

import base64
import io
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fl_sim.leakage.leaks import Record

Arrays = dict[str, NDArray[Any]]

_NAME = re.compile(r"r(\d+)-c(\d+)-a(\d+)-e(\d+)\.npz")
_OPENED = 240  # files at most, so that a folder without any recovered image costs little
_LARGEST_PIXELS = 224  # a side of an embedded image; larger ones would bloat the page
CLASSES_SHOWN = 20


class Key(NamedTuple):
    """Which record an example belongs to."""

    round: int
    attack: int
    client: int
    example: int


@dataclass(frozen=True)
class Pair:
    """A recovered image beside the true one, if that is known, as data URIs, with its record."""

    recovered: str
    true: str | None
    record: Record


@dataclass(frozen=True)
class Bar:
    """One class in a label chart; probabilities clipped to [0, 1], `true` None if not known."""

    index: int
    true: float | None
    recovered: float


@dataclass(frozen=True)
class Chart:
    """A recovered soft label, beside the true one if that is known, with its record.

    `bars` are some of its `classes`.
    """

    bars: list[Bar]
    classes: int
    record: Record


def image_pairs(folder: Path, records: Iterable[Record], limit: int) -> list[Pair]:
    """Return finite (C, H, W) images, in pairs where the truth is known, spread over rounds."""
    chosen = _choose(folder, limit, _has_image)
    found = _records_of(records, chosen)
    return [
        Pair(
            _data_uri(_in_range(arrays["image"], found[key])),
            _data_uri(arrays["true_image"]) if "true_image" in arrays else None,
            found[key],
        )
        for key, arrays in sorted(chosen.items())
        if key in found
    ]


def label_charts(folder: Path, records: Iterable[Record], limit: int) -> list[Chart]:
    """Return charts of finite (K,) labels, spread over rounds and attacks."""
    chosen = _choose(folder, limit, _has_label)
    found = _records_of(records, chosen)
    return [
        Chart(_bars(arrays["label"], arrays.get("true_label")), arrays["label"].size, found[key])
        for key, arrays in sorted(chosen.items())
        if key in found
    ]


def _choose(folder: Path, limit: int, accepts: Callable[[Arrays], bool]) -> dict[Key, Arrays]:
    """Open files in an order that spreads, until `limit` of them are accepted."""
    paths: dict[Key, Path] = {}
    for path in folder.glob("*.npz"):
        if match := _NAME.fullmatch(path.name):
            server_round, client, attack, example = map(int, match.groups())
            paths[Key(server_round, attack, client, example)] = path
    chosen: dict[Key, Arrays] = {}
    for key in _spread(paths, limit)[:_OPENED]:
        arrays = read_arrays(paths[key])
        if accepts(arrays):
            chosen[key] = arrays
        if len(chosen) == limit:
            break
    return chosen


def _spread(keys: Iterable[Key], limit: int) -> list[Key]:
    """Order keys: one for each attack at evenly spaced rounds, a second one, …, then the rest.

    Of a round, the second one is of another client, where there is one.
    """
    cells: dict[tuple[int, int], list[Key]] = defaultdict(list)
    for key in _by_turns(keys):
        cells[key.round, key.attack].append(key)
    if not cells:
        return []
    rounds = sorted({server_round for server_round, _ in cells})
    count = min(len(rounds), max(1, limit // len({attack for _, attack in cells})))
    even = {rounds[i * (len(rounds) - 1) // max(count - 1, 1)] for i in range(count)}
    layers = [
        [cell for (server_round, _), cell in cells.items() if (server_round in even) is is_even]
        for is_even in (True, False)
    ]
    return [key for part in layers for layer in zip_longest(*part) for key in layer if key]


def _by_turns(keys: Iterable[Key]) -> list[Key]:
    """Order keys by round and attack, and clients by turns: one example of each, then a second."""
    turns: Counter[tuple[int, int, int]] = Counter()
    ordered = []
    for key in sorted(keys):
        ordered.append((key.round, key.attack, turns[key[:3]], key))
        turns[key[:3]] += 1
    return [key for *_, key in sorted(ordered)]


def read_arrays(path: Path) -> Arrays:
    """Read an archive; one that a kill has torn is empty."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}


def _has_image(arrays: Arrays) -> bool:
    return _has("image", arrays, dimensions=3)


def _has_label(arrays: Arrays) -> bool:
    return _has("label", arrays, dimensions=1)


def _has(name: str, arrays: Arrays, *, dimensions: int) -> bool:
    """Say whether a finite array is there, and the true one, if that is there, is like it."""
    found = arrays.get(name)
    if found is None or found.ndim != dimensions:
        return False
    true = arrays.get(f"true_{name}", found)
    return bool(found.shape == true.shape and np.isfinite(found).all() and np.isfinite(true).all())


def _records_of(records: Iterable[Record], keys: Iterable[Key]) -> dict[Key, Record]:
    wanted: set[tuple[Any, ...]] = set(keys)
    found: dict[Key, Record] = {}
    for record in records:
        key = tuple(record.get(name) for name in Key._fields)
        if key in wanted:
            found[Key(*key)] = record
    return found


def _in_range(image: NDArray[Any], record: Record) -> NDArray[Any]:
    """Scale an image to [0, 1], if it is as a model takes it."""
    low, high = record.get("image_low") or 0.0, record.get("image_high") or 1.0
    return np.asarray((image - low) / (high - low))


def _data_uri(pixels: NDArray[Any]) -> str:
    """Encode a (C, H, W) image in [0, 1] as PNG; neither 1 nor 3 channels become their mean."""
    if pixels.shape[0] != 3:
        pixels = pixels.mean(axis=0, keepdims=True)
    levels = np.round(255 * np.clip(pixels, 0.0, 1.0)).astype(np.uint8).transpose(1, 2, 0)
    image = Image.fromarray(levels.squeeze(axis=2) if levels.shape[2] == 1 else levels)
    image.thumbnail((_LARGEST_PIXELS, _LARGEST_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _bars(label: NDArray[Any], true: NDArray[Any] | None) -> list[Bar]:
    """Return all classes, or of many the largest ones, in their order."""
    either = label if true is None else np.maximum(label, true)
    largest: Sequence[int] = np.argsort(-either, kind="stable").tolist()
    return [
        Bar(
            index,
            None if true is None else float(np.clip(true[index], 0, 1)),
            float(np.clip(label[index], 0, 1)),
        )
        for index in sorted(largest[:CLASSES_SHOWN])
    ]
