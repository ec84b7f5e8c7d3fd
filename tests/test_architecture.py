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
FLOWER_FILES = ("client", "server", "strategy", "simulation")


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
        "attacks": ("flwr", "fl_sim", "defenses", "scenarios", "tests", "benchmarks"),
        "defenses": ("flwr", "fl_sim", "scenarios", "tests", "benchmarks"),
        "fl_sim": ("scenarios", "tests", "benchmarks"),
        "scenarios": ("tests", "benchmarks"),
    }[path.parts[0]]
    assert not {module for module in imports if is_within(module, *forbidden)}


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] == "defenses"], ids=str)
def test_defenses_know_only_the_registry_of_attacks(path: Path) -> None:
    of_attacks = {module for module in imports_of(path) if is_within(module, "attacks")}
    assert {module for module in of_attacks if not is_within(module, "attacks.registry")} == set()


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] == "fl_sim"], ids=str)
def test_only_the_flower_side_imports_flower(path: Path) -> None:
    if not path.parts[1].startswith(FLOWER_FILES):
        assert not {module for module in imports_of(path) if is_within(module, "flwr")}


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
