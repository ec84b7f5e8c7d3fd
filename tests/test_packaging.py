"""The wheel holds our four packages, whole, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("attacks", "defenses", "fl_sim", "scenarios")
LEFT_OUT = ("docs", "examples", "tests")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the tree, as in a fresh checkout."""
    copy = tmp_path_factory.mktemp("tree")
    for name in (*PACKAGES, *LEFT_OUT):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel of the copy, with the setuptools that is installed."""
    out = tmp_path_factory.mktemp("wheel")
    options = ["--wheel", "--no-isolation", "--outdir", str(out)]
    command = [sys.executable, "-m", "build", *options, str(tree)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = out.glob("*.whl")
    return file


@pytest.mark.e2e
def test_wheel_holds_exactly_our_packages(tree: Path, wheel: Path) -> None:
    expected = {
        path.relative_to(tree).as_posix()
        for name in PACKAGES
        for path in (tree / name).rglob("*")
        if path.is_file()
    }
    assert {"scenarios/label-smoothing.toml", "fl_sim/cli.py", "attacks/py.typed"} <= expected
    members = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert members == expected


@pytest.mark.e2e
def test_wheel_describes_itself(wheel: Path) -> None:
    (info,) = (p for p in zipfile.Path(wheel).iterdir() if p.name.endswith(".dist-info"))
    assert "fl-sim = fl_sim.cli:main" in (info / "entry_points.txt").read_text()
    metadata = (info / "METADATA").read_text(encoding="utf-8")
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert (info / "licenses" / "LICENSE").exists()
