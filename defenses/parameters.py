"""What a defense's parameters must be, checked in one place and said in one form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from defenses.base import is_number


def require_number(name: str, value: Any, rule: str, holds: Callable[[float], bool]) -> None:
    """Raise unless a parameter is a finite number of the given range.

    Args:
        name: of the parameter.
        value: as it was given.
        rule: the range in words, as in "in [0, 1)".
        holds: whether a number lies in it.

    Raises:
        ValueError: it isn't one, or lies outside.

    Example:
        >>> require_number("sparsity", 1.5, "in [0, 1)", lambda value: 0 <= value < 1)
        Traceback (most recent call last):
            ...
        ValueError: sparsity must be a finite number in [0, 1), found 1.5
    """
    if not (is_number(value) and math.isfinite(value) and holds(value)):
        raise ValueError(f"{name} must be a finite number {rule}, found {value!r}")


def require_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise unless a parameter is one of the known words.

    Raises:
        ValueError: it is another.
    """
    if value not in known:
        *others, last = map(repr, known)
        raise ValueError(f"{name} must be {', '.join(others)} or {last}, found {value!r}")


def require_whole(name: str, value: object, least: int) -> None:
    """Raise unless a parameter is a whole number of at least so much.

    Raises:
        ValueError: it isn't.
    """
    if not (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        raise ValueError(f"{name} must be a whole number of at least {least}, found {value!r}")
