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

from fl_sim.leakage.leaks import TOLERANCE, Record
from fl_sim.leakage.records import senders

Arrays = dict[str, NDArray[Any]]

_NAME = re.compile(r"r(\d+)-c(\d+)-a(\d+)(?:-e(\d+))?\.npz")
_OPENED = 240  # files at most, so that a folder without any recovered image costs little
_LARGEST_PIXELS = 224  # a side of an embedded image; larger ones would bloat the page
CLASSES_SHOWN = 20


class Key(NamedTuple):
    """Which record an archive belongs to; of a whole update the example is -1."""

    round: int
    attack: int
    client: int
    example: int = -1


@dataclass(frozen=True)
class Pair:
    """A recovered image beside the true one, if that is known, as data URIs, with its record.

    `originals` are those that the true one was mixed from.
    """

    recovered: str
    true: str | None
    record: Record
    originals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bar:
    """One class in a chart; heights in [0, 1], None where there is none to show.

    `marks` are the heights of other answers: of labels that fit as well, or of a guess.
    """

    index: int
    true: float | None
    recovered: float | None
    marks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A recovered soft label or class mass, beside the true one if that is known, with its record.

    `bars` are some of its `classes`, `top` is what their full height stands for.
    """

    bars: list[Bar]
    classes: int
    record: Record
    top: float = 1.0


def image_pairs(folder: Path, records: Iterable[Record], limit: int) -> list[Pair]:
    """Return finite (C, H, W) images, in pairs where the truth is known, spread over rounds."""
    chosen = _choose(folder, limit, _has_image)
    found = _records_of(records, chosen)
    return [
        Pair(
            _data_uri(_in_range(arrays["image"], found[key])),
            _data_uri(arrays["true_image"]) if "true_image" in arrays else None,
            found[key],
            tuple(_data_uri(original) for original in arrays.get("originals", ())),
        )
        for key, arrays in sorted(chosen.items())
        if key in found
    ]


def label_charts(folder: Path, records: Iterable[Record], limit: int) -> list[Chart]:
    """Return charts of finite (K,) labels, spread over rounds and attacks."""
    chosen = _choose(folder, limit, _has_label)
    found = _records_of(records, chosen)
    return [
        _chart(arrays.get("label"), arrays.get("true_label"), _others(arrays), found[key], top=1.0)
        for key, arrays in sorted(chosen.items())
        if key in found
    ]


def mass_charts(
    folder: Path, records: Iterable[Record], limit: int, *, first: int | None = None
) -> list[Chart]:
    """Return charts of the class masses (K,) of updates, beside the true ones and a guess.

    All have one scale; those of the attack `first` come first.
    """
    chosen = _choose(folder, limit, _has_mass, of_updates=True)
    found = _records_of(records, chosen)
    shown = [(found[key], arrays) for key, arrays in sorted(chosen.items()) if key in found]
    shown.sort(key=lambda pair: pair[0].get("attack") != first)
    names = ("mass", "true_mass", "guessed_mass")
    heights = [arrays[name].max() for _, arrays in shown for name in names if name in arrays]
    top = float(max(heights, default=1.0))
    return [
        _chart(
            arrays["mass"],
            arrays.get("true_mass"),
            [arrays["guessed_mass"]] if "guessed_mass" in arrays else [],
            record,
            top=top,
        )
        for record, arrays in shown
    ]


def _others(arrays: Arrays) -> list[NDArray[Any]]:
    """Return the labels that fit as well as the one that is shown, if any is."""
    candidates = list(arrays.get("candidates", ()))
    label = arrays.get("label")
    if label is None:
        return candidates
    return [other for other in candidates if np.abs(other - label).max() > TOLERANCE]


def kept_paths(folder: Path, *, of_updates: bool) -> dict[Key, Path]:
    """Return the archives in a run's `images/`: those of examples, or those of whole updates."""
    paths: dict[Key, Path] = {}
    for path in folder.glob("*.npz"):
        if match := _NAME.fullmatch(path.name):
            server_round, client, attack, example = map(int, match.groups(default=-1))
            if (example < 0) is of_updates:
                paths[Key(server_round, attack, client, example)] = path
    return paths


def _choose(
    folder: Path, limit: int, accepts: Callable[[Arrays], bool], *, of_updates: bool = False
) -> dict[Key, Arrays]:
    """Open files of examples or of updates in an order that spreads, until `limit` are accepted."""
    paths = kept_paths(folder, of_updates=of_updates)
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
    return _fits(arrays.get("image"), arrays.get("true_image"), dimensions=3)


def _has_label(arrays: Arrays) -> bool:
    rows = [arrays["label"]] if "label" in arrays else list(arrays.get("candidates", ()))
    true = arrays.get("true_label")
    return bool(rows) and all(_fits(row, true, dimensions=1) for row in rows)


def _has_mass(arrays: Arrays) -> bool:
    return _fits(arrays.get("mass"), arrays.get("true_mass"), dimensions=1)


def _fits(found: NDArray[Any] | None, true: NDArray[Any] | None, *, dimensions: int) -> bool:
    """Say whether an array is finite, and has the form of the true one, if that is there."""
    if found is None or found.ndim != dimensions or not np.isfinite(found).all():
        return False
    return true is None or (true.shape == found.shape and bool(np.isfinite(true).all()))


def _records_of(records: Iterable[Record], keys: Iterable[Key]) -> dict[Key, Record]:
    wanted: set[tuple[Any, ...]] = set(keys)
    found: dict[Key, Record] = {}
    for record in records:
        *place, example = (record.get(name) for name in ("round", "attack", "example"))
        sender = senders(record)[:1]
        key = (*place, *sender, -1 if example is None else example)
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


def _chart(
    found: NDArray[Any] | None,
    true: NDArray[Any] | None,
    others: Sequence[NDArray[Any]],
    record: Record,
    *,
    top: float,
) -> Chart:
    """Return all classes, or of many the largest ones, in their order, and their heights."""
    rows = [row for row in (found, true, *others) if row is not None]
    size = np.max(rows, axis=0)
    largest: Sequence[int] = np.argsort(-size, kind="stable").tolist()

    def height(row: NDArray[Any] | None, index: int) -> float | None:
        return None if row is None else float(np.clip(row[index] / top, 0, 1))

    bars = [
        Bar(
            index,
            height(true, index),
            height(found, index),
            tuple(float(np.clip(other[index] / top, 0, 1)) for other in others),
        )
        for index in sorted(largest[:CLASSES_SHOWN])
    ]
    return Chart(bars, size.size, record, top)
