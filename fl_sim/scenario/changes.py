"""Changes of a scenario's values, by the path of their keys."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Sequence
from typing import Any

from fl_sim.errors import UserError


def parse_change(text: str) -> tuple[str, Any]:
    """Split `key.path=value`; the value is TOML, or a string where it isn't.

    Raises:
        UserError: there is no key or no value.

    Example:
        >>> parse_change("defense.0.smoothing = [0.0, 0.5]")
        ('defense.0.smoothing', [0.0, 0.5])
    """
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not all(path.split(".")):
        raise UserError(f"must be key.path=value, found {text!r}")
    return path, _value(value.strip())


INSTEAD = {
    "client.local_epochs": "client.local_steps",
    "client.local_steps": "client.local_epochs",
}
"""Keys of which a scenario has one: a change of either takes the place of the other."""


TABLES = ("attack", "defense", "tracker")
"""Keys that hold a list of tables."""


def make_room(values: dict[str, Any], paths: Collection[str]) -> None:
    """Take out, in place, the keys that changes take the place of, unless these name both.

    Args:
        values: of a scenario.
        paths: of all keys that are to be changed.
    """
    for path in paths:
        other = INSTEAD.get(path)
        if other is None or other in paths:
            continue
        section, key = other.split(".")
        if isinstance(values.get(section), dict):
            values[section].pop(key, None)


def change(values: dict[str, Any], path: str, value: Any) -> None:
    """Put a value into nested tables and lists, in place.

    A number in the path indexes a list, as in `defense.0.smoothing`.

    Args:
        values: of a scenario; tables that are missing on the way are added.
        path: of the key.
        value: to be put there.

    Raises:
        UserError: the path leads nowhere.
    """
    keys = path.split(".")
    if not all(keys):
        raise UserError(f"a key must be key.path, found {path!r}")
    target: Any = values
    for depth, key in enumerate(keys[:-1]):
        slot = _slot(target, keys, depth)
        if isinstance(target, dict):
            target.setdefault(key, [] if key in TABLES else {})
        target = target[slot]
    target[_slot(target, keys, len(keys) - 1)] = value


def _slot(target: Any, keys: Sequence[str], depth: int) -> int | str:
    """Return what indexes `target`, the value at `keys[:depth]`, under the next key."""
    key, path, parent = keys[depth], ".".join(keys), ".".join(keys[:depth])
    if isinstance(target, dict):
        return key
    if not isinstance(target, list):
        raise UserError(f"{path}: {parent} must be a table, found {target!r}")
    if not (key.isdecimal() and int(key) < len(target)):
        raise UserError(
            f"{path}: {key!r} must be the number of an entry of {parent}, counted from 0; "
            f"it has {len(target)}"
        )
    return int(key)


def _value(text: str) -> Any:
    """Read a TOML value; anything that isn't one is a string."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text
