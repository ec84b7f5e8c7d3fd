"""What varies among scenarios, and how a value is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_ABOUT = {"seed", "name", "images", "tracker"}
"""Keys that tell runs of a cell apart, or change nothing of what they record."""
_TABLES = ("defense", "attack")


def varied(scenarios: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """Find the keys in which scenarios differ, the seed apart.

    Defenses, and attacks, of different names are compared as wholes.

    Args:
        scenarios: as `scenario.json` holds them.

    Returns:
        Key paths, and for each scenario its value at each of them, None where it has none.
    """
    whole = tuple(
        table
        for table in _TABLES
        if len({json.dumps(_names(one.get(table))) for one in scenarios}) > 1
    )
    flat = [
        flattened({key: value for key, value in one.items() if key not in _ABOUT}, whole=whole)
        for one in scenarios
    ]
    keys = dict.fromkeys(key for one in flat for key in one)
    different = [key for key in keys if len({json.dumps(one.get(key)) for one in flat}) > 1]
    return tuple(different), [{key: one.get(key) for key in different} for one in flat]


def _names(stages: Any) -> Any:
    if not isinstance(stages, list):
        return stages
    return [(one.get("name"), one.get("label"), one.get("image")) for one in stages]


def flattened(scenario: Mapping[str, Any], *, whole: Sequence[str] = ()) -> dict[str, Any]:
    """Return the values of a scenario by the paths of their keys.

    Args:
        scenario: as `scenario.json` holds it.
        whole: lists of tables that stay one value each.

    Example:
        >>> flattened({"rounds": 2, "client": {"lr": 0.1}, "defense": [{"name": "mixup"}]})
        {'rounds': 2, 'client.lr': 0.1, 'defense.0.name': 'mixup'}
    """
    flat: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        is_stages = isinstance(value, list) and value and isinstance(value[0], dict)
        if is_stages and key not in whole:
            value = dict(enumerate(value))
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{key}.{name}".lstrip("."))
        else:
            flat[key] = value

    walk(dict(scenario), "")
    return flat


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return for each key the shortest end of its path that no other has, in words.

    Example:
        >>> short_names(["client.batch_size", "defense.0.smoothing"])
        {'client.batch_size': 'batch size', 'defense.0.smoothing': 'smoothing'}
    """
    short = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        others = [other for other in keys if other != key]
        short[key] = next(
            (end for end in ends if not any(f".{o}".endswith(f".{end}") for o in others)), key
        ).replace("_", " ")
    return short


def shown(value: Any) -> str:
    """Write a value of a scenario for people; stages by their names and options.

    Example:
        >>> shown([{"name": "mixup", "alpha": 1.0}]), shown([]), shown(0.1), shown(None)
        ('mixup (alpha 1.0)', 'none', '0.1', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return " → ".join(map(_stage, value)) or "none"
    return json.dumps(value)


def _stage(stage: Mapping[str, Any]) -> str:
    names = [str(stage[key]) for key in ("name", "label", "image") if stage.get(key)]
    options = {k: v for k, v in stage.items() if k not in ("name", "label", "image")}
    plain = {"rounds": "all", "clients": "all", "label_options": {}, "image_options": {}}
    told = [f"{k} {shown(v)}" for k, v in options.items() if plain.get(k, ...) != v]
    return " + ".join(names) + (f" ({', '.join(told)})" if told else "")


def described(values: Mapping[str, Any]) -> str:
    """Write a cell for people, as in `smoothing 0.1, batch size 4`; "" where nothing varies."""
    short = short_names(list(values))
    return ", ".join(f"{short[key]} {shown(value)}" for key, value in values.items())
