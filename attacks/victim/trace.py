"""One run of a network, watched: which layers ran, in which order, on what."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv2d)
"""What an attack can take apart."""


@dataclass(frozen=True, eq=False)
class Call:
    """A linear or convolutional layer's run.

    Args:
        name: of the module.
        module: the layer.
        given: its input.
        output: likewise.
        between: which other modules ran since the call before, in words.
        kept: share of the input's entries that dropout in train mode would have left.
    """

    name: str
    module: nn.Linear | nn.Conv2d
    given: Tensor
    output: Tensor
    between: str
    kept: float = 1.0


def watch(model: nn.Module, run: Callable[[], Any]) -> tuple[Any, tuple[Call, ...]]:
    """Run a model, and return its output and its layers' calls, in order."""
    calls: list[Call] = []
    others: list[str] = []
    kept: list[float] = []

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: Any, output: Any) -> None:
            if not isinstance(module, LAYERS):
                others.append(f"{name!r} ({type(module).__name__})")
                if isinstance(module, nn.Dropout):
                    kept.append(1 - module.p)
                return
            # Clones, because an activation may work in place.
            given = input_of(inputs, named).clone()
            words, share = ", ".join(others), math.prod(kept)
            calls.append(Call(name, module, given, output.clone(), words, share))
            others.clear()
            kept.clear()

        return hook

    handles = [
        module.register_forward_hook(hook_of(name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, LAYERS) or not any(True for _ in module.children())
    ]
    try:
        return run(), tuple(calls)
    finally:
        for handle in handles:
            handle.remove()


def inputs_of_layers(
    layers: Mapping[str, nn.Module], run: Callable[[], Any], *, is_all: bool = True
) -> dict[str, Tensor]:
    """Return what layers are called on in a run; unless `is_all`, it ends at the first of them.

    Args:
        layers: by name.
        run: runs the model.
        is_all: whether the run goes on to its end.
    """
    caught: dict[str, Tensor] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            caught[name] = input_of(inputs, named)
            if not is_all:
                raise _Reached

        return hook

    handles = [
        layer.register_forward_pre_hook(hook_of(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        run()
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return caught


def input_of(inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """Return what a layer was called on, by position or by keyword, as a hook gets it."""
    given: Tensor = inputs[0] if inputs else named["input"]
    return given


class _Reached(Exception):
    """Ends a run at the layer whose input was wanted."""
