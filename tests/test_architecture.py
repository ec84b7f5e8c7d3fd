"""Imports point one way: scenarios -> fl_sim -> attacks, defenses."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS, Registry
from defenses import DEFENSES
from fl_sim import DATASETS, MODELS

ROOT = Path(__file__).parents[1]
PACKAGES = ("attacks", "defenses", "fl_sim", "scenarios")
FILES = sorted(path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Yield what a module imports; `from a import b` yields `a` and `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            parents = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0]
            if isinstance(name, ast.Constant):
                yield str(name.value)


def imports_of(path: Path) -> set[str]:
    source = (ROOT / path).read_text(encoding="utf-8")
    return set(imported_modules(source, ".".join(path.parent.parts)))


def is_within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import flwr", "flwr"),
        ("import os, flwr.app as app", "flwr.app"),
        ("from flwr.app import Message", "flwr.app"),
        ("from fl_sim import scenario", "fl_sim.scenario"),
        ("from . import registry", "attacks.registry"),
        ("from .registry import Entry", "attacks.registry.Entry"),
        ("if TYPE_CHECKING:\n    import flwr", "flwr"),
        ("def f():\n    import flwr", "flwr"),
        ("importlib.import_module('flwr.app')", "flwr.app"),
    ],
)
def test_every_form_of_import_is_seen(source: str, module: str) -> None:
    assert module in set(imported_modules(source, "attacks"))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_one_way(path: Path) -> None:
    imports = imports_of(path)
    forbidden = {
        "attacks": ("flwr", "fl_sim", "defenses", "scenarios", "tests"),
        "defenses": ("flwr", "fl_sim", "scenarios", "tests"),
        "fl_sim": ("scenarios", "tests"),
        "scenarios": ("tests",),
    }[path.parts[0]]
    assert not {module for module in imports if is_within(module, *forbidden)}


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] == "defenses"], ids=str)
def test_defenses_know_only_the_registry_and_the_facts_of_attacks(path: Path) -> None:
    of_attacks = {module for module in imports_of(path) if is_within(module, "attacks")}
    known = ("attacks.registry", "attacks.facts")
    assert {module for module in of_attacks - {"attacks"} if not is_within(module, *known)} == set()


ROOMS = {
    "": set(),
    "numerics": set(),
    "victim": {""},
    "one_example": {"", "numerics", "victim"},
    "batch": {"", "numerics", "victim", "one_example"},
    "counts": {"", "numerics", "victim"},
    "dense": {"", "numerics", "victim"},
    "convolution": {"", "numerics", "victim", "dense"},
    "masks": {"", "numerics", "victim", "one_example", "batch", "dense"},
    "variational": {"", "numerics", "victim", "dense", "masks"},
    "lost": {"", "numerics", "victim", "dense", "masks"},
    "matching": {"", "numerics", "victim"},
    "unrolled": {
        *("", "numerics", "victim", "batch", "dense", "masks", "convolution", "matching"),
    },
    "rounds": {"", "numerics", "victim", "dense", "masks", "unrolled"},
    "labels": {
        *("", "numerics", "victim", "one_example", "batch", "counts", "dense", "masks", "unrolled"),
        *("lost", "rounds", "variational"),
    },
    "images": {
        *("", "numerics", "victim", "batch", "dense", "convolution", "unrolled", "matching"),
        *("lost", "rounds", "variational"),
    },
}
"""What each room of `attacks` may import from, beside itself; "" is the package's own files."""


def room_of(module: str) -> str:
    name = module.split(".")[1]
    return name if name in ROOMS else ""


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] == "attacks"], ids=str)
def test_rooms_of_attacks_import_downwards(path: Path) -> None:
    if path.name == "__init__.py" and len(path.parts) == 2:
        return  # it offers what is in the rooms
    room = path.parts[1] if len(path.parts) > 2 else ""
    modules = {m for m in imports_of(path) if m.startswith("attacks.")}
    assert {room_of(m) for m in modules} - {room} <= ROOMS[room]


def test_no_constant_of_attacks_has_two_values() -> None:
    values: dict[str, set[str]] = {}
    for path in (p for p in FILES if p.parts[0] == "attacks"):
        for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
            for target in node.targets if isinstance(node, ast.Assign) else ():
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                for name in names:
                    if isinstance(name, ast.Name) and name.id.isupper():
                        values.setdefault(name.id, set()).add(str(path))
    assert {name: files for name, files in values.items() if len(files) > 1} == {}


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] == "fl_sim"], ids=str)
def test_only_one_room_imports_flower(path: Path) -> None:
    if path.parts[1] != "flower":
        assert not {module for module in imports_of(path) if is_within(module, "flwr")}


ROOMS_OF_FL_SIM = {
    "capture": ("flower.strategy", "flower.engines", "flower.server", "flower.client", "report"),
    "leakage": ("flower", "scenario", "data", "federation", "report", "run_folder"),
    "report": ("flower", "scenario", "data", "federation"),
    "results": ("data", "federation", "trackers"),
    "scenario": ("flower", "data", "federation", "leakage", "report", "results", "sweep"),
    "sweep": ("data", "federation", "report", "results", "terminal"),
    "trackers": ("flower", "scenario", "data", "federation", "sweep"),
    "data": ("flower", "scenario", "federation", "leakage", "report"),
    "terminal": ("flower", "data", "federation"),
}
"""Room -> what none of its files may import, all of `fl_sim`."""


@pytest.mark.parametrize("room", ROOMS_OF_FL_SIM)
def test_rooms_of_the_simulator_keep_to_themselves(room: str) -> None:
    forbidden = [f"fl_sim.{name}" for name in ROOMS_OF_FL_SIM[room]]
    files = [path for path in FILES if path.parts[:2] == ("fl_sim", room)]
    assert files
    found = {
        f"{path}: {module}"
        for path in files
        for module in imports_of(path)
        if is_within(module, *forbidden)
    }
    assert found == set()


@pytest.mark.parametrize(
    ("registry", "package"),
    [
        (LABEL_ATTACKS, "attacks"),
        (IMAGE_ATTACKS, "attacks"),
        (DEFENSES, "defenses"),
        (MODELS, "fl_sim"),
        (DATASETS, "fl_sim"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_registered_entries_live_in_their_package_and_load(
    registry: Registry, package: str
) -> None:
    for name in registry:
        entry = registry[name]
        assert callable(entry)
        assert entry.__module__.split(".")[0] == package
