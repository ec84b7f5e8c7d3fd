"""Server and clients refuse to run different code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fl_sim.errors import UserError
from fl_sim.flower import client
from fl_sim.flower.provenance import PACKAGES, code_hash, hash_sources, package_folder
from fl_sim.flower.run import run
from fl_sim.scenario import Scenario


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a package of two files."""
    folder = tmp_path / "hashed_package"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "inner" / "__init__.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_hash_depends_on_names_and_contents_of_python_files_only(package: Path) -> None:
    before = hash_sources(("hashed_package",))
    (package / "inner" / "notes.md").write_text("notes")
    assert hash_sources(("hashed_package",)) == before
    (package / "inner" / "__init__.py").rename(package / "inner" / "other.py")
    renamed = hash_sources(("hashed_package",))
    (package / "inner" / "other.py").write_text("VALUE = 2\n")
    assert len({before, renamed, hash_sources(("hashed_package",))}) == 3


def test_a_hash_does_not_depend_on_the_place(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hash_sources(("hashed_package",))
    (tmp_path / "elsewhere").mkdir()
    package.rename(tmp_path / "elsewhere" / package.name)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    assert hash_sources(("hashed_package",)) == before


def test_our_packages_are_hashed() -> None:
    assert code_hash() == hash_sources(PACKAGES)
    assert (package_folder("fl_sim") / "flower" / "client.py").exists()


def test_a_client_with_other_code_is_refused(
    tiny: Callable[..., Scenario], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "code_hash", lambda: "0123456789abcdef")
    rule = f"client 0 must run the server's code, {code_hash()}, found 0123456789abcdef"
    with pytest.raises(UserError, match=rule):
        run(tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / "rounds.jsonl").exists()
