"""Which code runs: a hash that a server and its clients compare."""

from __future__ import annotations

import functools
import hashlib
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("attacks", "defenses", "fl_sim")


@functools.cache
def code_hash() -> str:
    """Return a hash of this installation's source code: 16 hexadecimal digits."""
    return hash_sources(PACKAGES)


def hash_sources(packages: tuple[str, ...]) -> str:
    """Hash the names and contents of all Python files of packages, wherever these lie.

    Args:
        packages: importable packages; they aren't imported.
    """
    digest = hashlib.sha256()
    for folder in map(package_folder, packages):
        for path in sorted(folder.rglob("*.py")):
            content = path.read_bytes()
            name = path.relative_to(folder.parent).as_posix()
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:16]


def package_folder(package: str) -> Path:
    """Return the folder that a package is imported from."""
    spec = find_spec(package)
    assert spec is not None, package
    assert spec.submodule_search_locations, package
    return Path(next(iter(spec.submodule_search_locations)))
