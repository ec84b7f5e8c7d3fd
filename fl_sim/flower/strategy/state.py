"""Save and restore what a strategy carries from round to round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy

from fl_sim.errors import UserError
from fl_sim.flower.strategy.wrapper import Wrapper


def pack_state(strategy: Strategy) -> dict[str, Any]:
    """Return a strategy's attributes as arrays and JSON-able values.

    Arrays, numbers, strings and containers of them are kept; functions belong to the constructor.
    Anything else is named under "lost": a resumed run couldn't be the same.

    Returns:
        "arrays": path -> array; "values": attribute -> value, with arrays replaced by their path;
        "lost": names of attributes that can't be kept.
    """
    arrays: dict[str, Any] = {}
    values: dict[str, Any] = {}
    lost: list[str] = []
    for name, value in vars(_innermost(strategy)).items():
        if callable(value):
            continue
        try:
            values[name] = _pack(value, f"strategy/{name}", arrays)
        except TypeError:
            lost.append(name)
    return {"arrays": arrays, "values": values, "lost": lost}


def restore_state(strategy: Strategy, state: Mapping[str, Any]) -> None:
    """Give a strategy the attributes that `pack_state` returned.

    Raises:
        UserError: something couldn't be kept.
    """
    inner = _innermost(strategy)
    if state["lost"]:
        raise UserError(
            f"strategy {type(inner).__name__} keeps state that can't be checkpointed in "
            f"{', '.join(state['lost'])}; such a run can't be resumed"
        )
    for name, value in state["values"].items():
        setattr(inner, name, _unpack(value, state["arrays"]))


def _innermost(strategy: Strategy) -> Strategy:
    while isinstance(strategy, Wrapper):
        strategy = strategy.base
    return strategy


def _pack(value: Any, path: str, arrays: dict[str, Any]) -> Any:
    if isinstance(value, np.ndarray):
        arrays[path] = value
        return {"array": path}
    if isinstance(value, np.generic):
        arrays[path] = np.asarray(value)
        return {"scalar": path}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {k: _pack(v, f"{path}/{k}", arrays) for k, v in value.items()}}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{path}/{i}", arrays) for i, item in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": items}
    raise TypeError(type(value).__name__)


def _unpack(packed: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
    [(kind, content)] = packed.items()
    match kind:
        case "array":
            return arrays[content]
        case "scalar":
            return arrays[content][()]
        case "dict":
            return {key: _unpack(item, arrays) for key, item in content.items()}
        case "list":
            return [_unpack(item, arrays) for item in content]
        case "tuple":
            return tuple(_unpack(item, arrays) for item in content)
    return content
