"""Whatever a scenario's file says, it is a scenario or one sentence."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_sim.errors import UserError
from fl_sim.scenario import Scenario
from fl_sim.scenario.source import shipped_scenarios

CHECKS: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
}
SHIPPED = {name: file.read_text("utf-8") for name, file in shipped_scenarios().items()}
WORDS = st.sampled_from(
    ["all", "after", "soft-label", "dp-noise", "iid", "adam", "mnist-5k", "x:y", "every", "{}", ""]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | WORDS
    | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
_TABLES = ("data", "model", "client", "privacy", "server")


@functools.cache
def paths() -> list[str]:
    """Return the paths of all keys that a scenario has."""
    plain = Scenario.parse(
        {"defense": [{"name": "label-smoothing"}], "attack": [{"label": "soft-label"}]}
    ).model_dump()
    found = [*plain]
    found += [f"{table}.{key}" for table in _TABLES for key in plain[table]]
    found += [f"{table}.0.{key}" for table in ("defense", "attack") for key in plain[table][0]]
    return [*found, "defense.0.smoothing", "client.zzz", "attack.0.rounds.every", "defense.1.name"]


LINES = st.lists(
    st.tuples(st.sampled_from(paths()), VALUES | st.text(max_size=20)), min_size=1, max_size=3
)
CASES = (
    st.tuples(st.just("changes"), LINES)
    | st.tuples(st.just("table"), st.dictionaries(WORDS | st.sampled_from(paths()), VALUES))
    | st.tuples(st.just("toml"), st.tuples(st.sampled_from(sorted(SHIPPED)), st.integers(0, 2500)))
    | st.tuples(st.just("text"), st.text(max_size=80))
)


def is_understood_or_refused(case: tuple[str, Any], folder: Any) -> None:
    """Parse a scenario; anything else than a scenario or a `UserError` of one line is a bug."""
    kind, what = case
    file = folder / "any.toml"
    try:
        if kind == "changes":
            file.write_text('[[defense]]\nname = "label-smoothing"\n[[attack]]\n')
            Scenario.load(file, [f"{path}={_toml(value)}" for path, value in what])
        elif kind == "table":
            assert Scenario.parse(what).digest()
        else:
            text = what if kind == "text" else SHIPPED[what[0]][: what[1]]
            file.write_text(text, encoding="utf-8", errors="surrogatepass")
            scenario = Scenario.load(file)
            assert Scenario.parse(json.loads(scenario.to_json())) == scenario
    except UserError as error:
        assert str(error)
        assert "\n" not in str(error)


def _toml(value: Any) -> str:
    """Write a value as a user would; what TOML can't say, as text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(key)} = {_toml(v)}" for key, v in value.items())
        return f"{{{inner}}}"
    return json.dumps(value) if isinstance(value, str) else str(value)


@given(CASES)
@settings(max_examples=200, derandomize=True, **CHECKS)
def test_any_scenario_is_understood_or_refused(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[str, Any]
) -> None:
    is_understood_or_refused(case, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@given(CASES)
@settings(max_examples=10000, **CHECKS)
def test_thousands_of_scenarios_are_understood_or_refused(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[str, Any]
) -> None:
    is_understood_or_refused(case, tmp_path_factory.getbasetemp())
