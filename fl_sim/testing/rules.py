"""The rules, the error that names one, and what watches a plug-in while it works."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks import Registry


class Rule(StrEnum):
    """What a plug-in must be."""

    IMPORTABLE = "importable"
    """Its name is known and its module imports."""
    BUILDABLE = "buildable"
    """It can be built with its options."""
    FROZEN = "frozen"
    """It is a frozen dataclass of hyper-parameters."""
    BLIND = "blind"
    """It works on what a server sees alone."""
    PURE = "pure"
    """It changes nothing that it is given, and itself neither."""
    SEEDED = "seeded"
    """The generator it is given decides its draws; the global ones are neither read nor moved."""
    WELL_FORMED = "well-formed"
    """Its answer has the documented types, shapes and ranges."""
    HONEST = "honest"
    """It claims nothing that isn't so."""
    ROBUST = "robust"
    """It raises nothing but `ValueError`, and nothing at all where it can work."""
    EFFECTIVE = "effective"
    """It does something."""


class ConformanceError(AssertionError):
    """A plug-in breaks a rule.

    Args:
        subject: the plug-in, as in "label attack 'mine'".
        rule: which one.
        found: what it did.
    """

    def __init__(self, subject: str, rule: Rule, found: str) -> None:
        super().__init__(f"{subject} must be {rule}: {found}")
        self.rule = rule


@dataclass(frozen=True)
class Subject:
    """A plug-in under examination, and how it is called in messages."""

    title: str

    def require(self, holds: object, rule: Rule, found: str) -> None:
        """Raise unless a rule holds.

        Raises:
            ConformanceError: it doesn't.
        """
        if not holds:
            raise ConformanceError(self.title, rule, found)

    def require_frozen(self, plugin: object) -> None:
        """Raise unless the plug-in is a frozen dataclass that equals and hashes like its copy.

        Raises:
            ConformanceError: it isn't.
        """
        kind = type(plugin)
        parameters = getattr(kind, "__dataclass_params__", None)
        frozen = parameters is not None and parameters.frozen
        self.require(frozen, Rule.FROZEN, f"{kind.__name__} isn't a frozen dataclass")
        same = dataclasses.replace(plugin)  # type: ignore[type-var]
        try:
            is_value = same == plugin and hash(same) == hash(plugin)
        except TypeError as error:
            raise ConformanceError(self.title, Rule.FROZEN, first_line(error)) from error
        self.require(is_value, Rule.FROZEN, "a copy with the same parameters doesn't equal it")

    @contextlib.contextmanager
    def watch(
        self,
        where: str,
        watched: Mapping[str, object],
        *,
        salt: int = 0,
        torch_may_draw: bool = False,
    ) -> Iterator[None]:
        """Fail if the body changes what is watched, or a global generator.

        Args:
            where: the situation, for the message.
            watched: name -> a module, a tensor, or anything with a telling `repr`.
            salt: the global generators' state in the body derives from it.
            torch_may_draw: whether the body may draw from PyTorch's.

        Raises:
            ConformanceError: something changed.
        """
        before = _contents(watched)
        with _global_generators(salt) as moved:
            yield
            names = [name for name in moved() if not (torch_may_draw and name == "torch")]
            self.require(
                not names,
                Rule.SEEDED,
                f"{where} it moved the global generator of {' and '.join(names)}",
            )
        after = _contents(watched)
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        self.require(not changed, Rule.PURE, f"{where} it changed {', '.join(changed[:1])}")


def resolve(registry: Registry, plugin: Any) -> tuple[Subject, Any]:
    """Import what a name or `module:attr` stands for; anything else stands for itself.

    Raises:
        ConformanceError: it can't be imported.
    """
    if not isinstance(plugin, str):
        return Subject(
            f"{registry.kind} {getattr(plugin, '__name__', type(plugin).__name__)}"
        ), plugin
    subject = Subject(f"{registry.kind} {plugin!r}")
    try:
        return subject, registry[plugin]
    except Exception as error:  # a third party's module may raise anything
        raise ConformanceError(subject.title, Rule.IMPORTABLE, first_line(error)) from error


def build(subject: Subject, found: Any, options: Mapping[str, Any]) -> Any:
    """Call a class or function with the options; anything else is built already.

    Raises:
        ConformanceError: it can't be built.
    """
    try:
        if isinstance(found, type | partial) or inspect.isroutine(found):
            return found(**options)
        if options:
            raise TypeError(f"it is built already and takes no options, found {list(options)}")
    except Exception as error:  # as above
        raise ConformanceError(subject.title, Rule.BUILDABLE, first_line(error)) from error
    return found


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def content(value: object) -> object:
    """Return what is equal for tensors of the same bits, and for values that look alike."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        return value.dtype, tuple(value.shape), flat.view(torch.uint8).numpy().tobytes()
    if isinstance(value, tuple):
        return tuple(content(part) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return type(value), *(content(getattr(value, field.name)) for field in fields)
    return repr(value)


def difference(one: Any, two: Any) -> str | None:
    """Name the first field in which two dataclass instances, or parts of theirs, differ."""
    if type(one) is not type(two):
        return "type"
    for field in dataclasses.fields(one):
        first, second = getattr(one, field.name), getattr(two, field.name)
        if content(first) == content(second):
            continue
        parts = zip(first, second, strict=False) if isinstance(first, tuple) else ()
        inside = (difference(*pair) for pair in parts if dataclasses.is_dataclass(pair[0]))
        return next((name for name in inside if name), field.name)
    return None


def generator(seed: int = 0) -> torch.Generator:
    """Return a CPU generator."""
    return torch.Generator().manual_seed(seed)


def _contents(watched: Mapping[str, object]) -> dict[str, object]:
    contents: dict[str, object] = {}
    for key, value in watched.items():
        if isinstance(value, nn.Module):
            contents |= {f"{key}'s {part}": held for part, held in _module_contents(value)}
        elif isinstance(value, Mapping):
            contents[f"the entries of {key}"] = list(value)
            contents |= {f"{key}[{name!r}]": content(value[name]) for name in value}
        else:
            contents[key] = content(value)
    return contents


def _module_contents(model: nn.Module) -> Iterator[tuple[str, object]]:
    for name, parameter in model.named_parameters():
        yield f"parameter {name!r}", (id(parameter), content(parameter), parameter.requires_grad)
        yield f"parameter {name!r} (its .grad)", content(parameter.grad)
    for name, buffer in model.named_buffers():
        yield f"buffer {name!r}", content(buffer)
    for name, module in model.named_modules():
        own = vars(module)
        at = f"of module {name!r}" if name else "of the whole"
        yield f"training flag {at}", module.training
        yield f"hooks {at}", [list(own[key]) for key in sorted(own) if key.endswith("_hooks")]
        plain = {k: v for k, v in own.items() if isinstance(v, bool | int | float | str)}
        yield f"attributes {at}", (sorted(own), plain)


@contextlib.contextmanager
def _global_generators(salt: int) -> Iterator[Callable[[], list[str]]]:
    """Give the global generators known states for a while; yield what says which moved."""
    saved = torch.get_rng_state(), np.random.get_state(), random.getstate()
    # Not torch.manual_seed, which would move the generators of all devices.
    torch.default_generator.manual_seed(salt + 1_000_003)
    np.random.seed(salt + 1_000_003)
    random.seed(salt + 1_000_003)
    before = _generator_states()
    try:
        yield lambda: [n for n, state in _generator_states().items() if state != before[n]]
    finally:
        torch.set_rng_state(saved[0])
        np.random.set_state(saved[1])
        random.setstate(saved[2])


def _generator_states() -> dict[str, object]:
    numpy_state = np.random.get_state()
    return {
        "torch": content(torch.get_rng_state()),
        "numpy": (numpy_state[1].tobytes(), *numpy_state[2:]),  # type: ignore[index]
        "random": random.getstate(),
    }
