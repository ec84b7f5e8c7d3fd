"""A registry of named entries that are imported only when they are used."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """Where an entry lives (`module:attr`) and what it does, in one line."""

    target: str
    summary: str


class Registry(Mapping[str, Any]):
    """Map names to classes or factories; importing waits until an entry is read.

    A key is a registered name, or `module:attr` for anything that isn't registered.

    Args:
        kind: what the entries are, in the singular, for error messages ("label attack").
        entries: name -> Entry.

    Example:
        >>> registry = Registry("number", {"pi": Entry("math:pi", "the circle's")})
        >>> registry["pi"]
        3.141592653589793
        >>> registry["math:tau"] == 2 * registry["pi"]
        True
    """

    def __init__(self, kind: str, entries: Mapping[str, Entry]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Any:
        """Import and return an entry.

        Raises:
            ValueError: the name is neither registered nor an importable `module:attr`.
        """
        if name in self._entries:
            return _load(self._entries[name].target)
        if ":" in name:
            try:
                return _load(name)
            except (ImportError, AttributeError) as error:
                raise ValueError(f"{self.kind} {name!r} can't be imported: {error}") from error
        raise ValueError(f"unknown {self.kind} {name!r}{nearest(name, self)}")

    def summary(self, name: str) -> str:
        """Return the one-line summary of a registered entry, without importing it."""
        return self._entries[name].summary

    def build(self, name: str, **options: Any) -> Any:
        """Call an entry with options.

        Raises:
            ValueError: the name is unknown, or the entry doesn't accept the options.
        """
        factory = self[name]
        if not callable(factory):
            raise ValueError(f"{self.kind} {name!r} must be a class or a function")
        try:
            return factory(**options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.kind} {name!r}: {error}") from error


def nearest(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """Say which known name is meant, or which there are, as the end of a sentence."""
    close = difflib.get_close_matches(name, list(known), n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}"


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
