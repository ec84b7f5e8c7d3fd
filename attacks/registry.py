"""A registry of named entries that are imported only when they are used."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import inspect
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """Where an entry lives (`module:attr`) and what it does, in one line."""

    target: str
    summary: str


class Registry(Mapping[str, Any]):
    """Map names to classes or factories; importing waits until an entry is read.

    A key is a built-in name, the name of an entry point in `group`, or `module:attr` for anything
    that isn't registered. Entry points are read when a name isn't built in, or on iteration.

    Args:
        kind: what the entries are, in the singular, for error messages ("label attack").
        entries: name -> Entry, the built-in ones.
        group: the entry-point group of third parties' entries; None for none.

    Example:
        >>> registry = Registry("number", {"pi": Entry("math:pi", "the circle's")})
        >>> registry["pi"]
        3.141592653589793
        >>> registry["math:tau"] == 2 * registry["pi"]
        True
    """

    def __init__(self, kind: str, entries: Mapping[str, Entry], group: str | None = None) -> None:
        self.kind = kind
        self.group = group
        self._built_in = dict(entries)

    def __iter__(self) -> Iterator[str]:
        yield from self._built_in
        yield from self._plugins

    def __len__(self) -> int:
        return len(self._built_in) + len(self._plugins)

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in self._plugins

    def __getitem__(self, name: str) -> Any:
        """Import and return an entry.

        Raises:
            ValueError: the name is neither registered nor an importable `module:attr`, or an entry
                point takes a name that is taken.
        """
        if name in self._built_in:
            return _load(self._built_in[name].target)
        entry = self._plugins.get(name)
        if entry is None and ":" not in name:
            raise ValueError(f"unknown {self.kind} {name!r}{nearest(name, self)}")
        target = name if entry is None else entry.target
        try:
            return _load(target)
        except (ImportError, _BadTarget) as error:
            where = "" if entry is None else f" ({target})"
            raise ValueError(f"{self.kind} {name!r}{where} can't be imported: {error}") from error

    def summary(self, name: str) -> str:
        """Return the summary of a registered entry, or an entry point's target; imports neither.

        Raises:
            ValueError: the name isn't registered.
        """
        entry = self._built_in.get(name) or self._plugins.get(name)
        if entry is None:
            raise ValueError(f"unknown {self.kind} {name!r}{nearest(name, self)}")
        return entry.summary

    def build(self, name: str, /, **options: Any) -> Any:
        """Call an entry with options.

        A TypeError raised inside the entry is a bug and stays one.

        Raises:
            ValueError: the name is unknown, an option is unknown or missing, or the entry refuses
                a value.
        """
        factory = self[name]
        if not callable(factory):
            raise ValueError(f"{self.kind} {name!r} must be a class or a function")
        mistake = _binding_mistake(factory, options)
        if mistake:
            raise ValueError(f"{self.kind} {name!r}: {mistake}")
        try:
            return factory(**options)
        except ValueError as error:
            raise ValueError(f"{self.kind} {name!r}: {error}") from error

    @functools.cached_property
    def _plugins(self) -> dict[str, Entry]:
        if self.group is None:
            return {}
        plugins: dict[str, Entry] = {}
        for point in importlib.metadata.entry_points(group=self.group):
            target = point.value.partition("[")[0].strip()
            taken = self._built_in.get(point.name) or plugins.get(point.name)
            if taken:
                raise ValueError(
                    f"the name of {self.kind} {point.name!r} is taken: {taken.target} has it, and "
                    f"the entry point {target} of group {self.group!r} wants it"
                )
            plugins[point.name] = Entry(target, target)
        return plugins


def nearest(name: str, known: Collection[str]) -> str:
    """Say which known name is meant, or which there are, as the end of a sentence."""
    close = difflib.get_close_matches(name, list(known), n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known)) or 'none'}"


class _BadTarget(AttributeError):
    """A target that isn't `module:attr`, or whose module has no such attribute."""


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        raise _BadTarget(f"it must be module:attr, found {target!r}")
    loaded = importlib.import_module(module)
    try:
        return operator.attrgetter(attribute)(loaded)
    except AttributeError as error:
        raise _BadTarget(str(error)) from error


def _binding_mistake(factory: Callable[..., Any], options: Mapping[str, Any]) -> str | None:
    """Say what is wrong with a factory's keyword arguments; None if they bind."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some built-in callables don't tell theirs
        return None
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {key: p for key, p in signature.parameters.items() if p.kind in kinds}
    if all(p.kind is not p.VAR_KEYWORD for p in signature.parameters.values()):
        for option in options:
            if option not in named:
                return f"unknown option {option!r}{nearest(option, named)}"
    missing = [k for k, p in named.items() if p.default is p.empty and k not in options]
    if missing:
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} required"
    try:
        signature.bind(**options)
    except TypeError as error:
        return str(error)
    return None
