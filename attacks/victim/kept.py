"""What several attacks ask of one leak, found once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from attacks.types import GradientLeak, NotApplicable

T = TypeVar("T")


def kept_with(leak: GradientLeak, name: str, find: Callable[[], T]) -> T:
    """Return what is found of a leak; it, or why there is none, is kept with the leak.

    Args:
        leak: keeps it until it is replaced.
        name: of what is found.
        find: called once.

    Raises:
        NotApplicable: as `find` does, every time.
    """
    kept = vars(leak)  # a frozen dataclass's own, as of a cached property
    if name not in kept:
        try:
            kept[name] = find()
        except NotApplicable as reason:
            kept[name] = NotApplicable(str(reason))
    found = kept[name]
    if isinstance(found, NotApplicable):
        raise NotApplicable(str(found))
    return cast(T, found)
