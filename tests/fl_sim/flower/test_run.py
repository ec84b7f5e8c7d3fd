"""A run picks its engine from one table, and knows of it what the engine gives back."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fl_sim
from attacks.registry import Entry, Registry
from fl_sim import ENGINES
from fl_sim.cli import app
from fl_sim.errors import NothingAccepted, UserError
from fl_sim.flower import run as launcher
from fl_sim.flower.engines import Engine, OnProgress, Outcome
from fl_sim.flower.run import run
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]
EACH_ENGINE = [
    pytest.param(name, marks=pytest.mark.slow) if name == "ray" else name for name in ENGINES
]
"""Processes of its own take Ray half a minute."""


def far_away(
    scenario: Scenario, out: Path, *, resume: bool, on_progress: OnProgress | None
) -> Outcome:
    """Stand in for an engine whose server is elsewhere: its folder isn't `out`."""
    if on_progress is not None:
        on_progress(1, 3, 3)
    lost = "nobody could be reached" if scenario.seed == 9 else None
    return Outcome(out.with_name("fetched"), lost)


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_takes_what_every_engine_takes(name: str) -> None:
    found = inspect.signature(ENGINES[name]).parameters
    asked = list(inspect.signature(Engine.__call__).parameters.values())[1:]
    assert [(p.name, p.kind) for p in found.values()] == [(p.name, p.kind) for p in asked]


def test_a_run_knows_what_its_engine_tells(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Registry("engine", {"local": Entry(f"{__name__}:far_away", "elsewhere")})
    monkeypatch.setitem(sys.modules, __name__, sys.modules[far_away.__module__])
    monkeypatch.setattr(launcher, "ENGINES", mine)
    told: list[tuple[int, int, int]] = []
    out = tmp_path / "run"
    assert run(tiny(), out, on_progress=lambda *what: told.append(what)) == tmp_path / "fetched"
    assert told == [(1, 3, 3)]
    with pytest.raises(NothingAccepted, match="nobody could be reached") as error:
        run(tiny("seed=9"), out)
    assert error.value.folder == tmp_path / "fetched"
    assert not list(tmp_path.iterdir())


def test_a_run_that_loses_all_replies_says_so_again_when_it_is_resumed(
    tiny: Tiny, tmp_path: Path
) -> None:
    scenario = tiny('defense=[{name="third_party:Spoils"}]')
    for resume, reason in ((False, "the commonest reason: array '2.weight'"), (True, "says why")):
        with pytest.raises(NothingAccepted, match=reason) as error:
            run(scenario, tmp_path, resume=resume)
        assert error.value.folder == tmp_path


@pytest.mark.parametrize("value", ["dask", 3])
def test_an_engine_must_be_in_the_table(value: object) -> None:
    with pytest.raises(UserError) as error:
        Scenario.parse({"engine": value})
    *some, last = (repr(name) for name in ENGINES)
    assert str(error.value) == f"engine: must be {', '.join(some)} or {last}, found {value!r}"


@pytest.mark.parametrize("name", EACH_ENGINE)
def test_every_engine_gives_the_records_of_local(
    name: str, tiny: Tiny, outcome_of: Callable[[Path], object], tmp_path: Path
) -> None:
    """From the start, and from where a run ended early; the attack draws."""
    scenario = tiny("rounds=2", "attack.0.label=third_party:Draws")
    there = scenario.with_changes({"engine": name})
    run(scenario, tmp_path / "expected")
    told: list[tuple[int, int, int]] = []
    folder = run(there, tmp_path / "run", on_progress=lambda *what: told.append(what))
    assert outcome_of(folder) == outcome_of(tmp_path / "expected")
    assert told[-1][0] == 2
    run(there, folder, resume=True)  # it is complete
    assert outcome_of(folder) == outcome_of(tmp_path / "expected")


@pytest.mark.parametrize("name", EACH_ENGINE)
def test_every_engine_leaves_a_folder_alone_where_the_scenario_is_wrong(
    name: str, tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="can't be imported"):
        run(tiny(f"engine={name}", "model.name=third_party:nothing"), tmp_path / "run")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_the_help_lists_the_table() -> None:
    shown = " ".join(
        CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).stdout.split()
    )
    assert "|".join(ENGINES) in shown
    assert all(ENGINES.summary(name) in shown for name in ENGINES)


@pytest.mark.e2e
def test_the_table_loads_no_engine() -> None:
    program = (
        "import sys; from fl_sim.scenario import Scenario\n"
        "Scenario.parse({'engine': 'ray'})\n"
        "sys.exit(' '.join({'torch', 'flwr', 'ray', 'psutil'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ENGINES" in fl_sim.__all__
