"""Where a Flower run's scenario comes from."""

from __future__ import annotations

import pytest

from fl_sim.errors import UserError
from fl_sim.scenario import Scenario
from fl_sim.scenario.source import configured_scenario


@pytest.mark.parametrize("source", ["baseline", Scenario.parse({}).to_json()], ids=["name", "json"])
def test_changes_apply_to_every_source(source: str) -> None:
    changes = 'data.clients=2; model.name="mlp";'
    scenario = configured_scenario({"scenario": source, "set": changes})
    assert (scenario.data.clients, scenario.model.name) == (2, "mlp")
    assert configured_scenario({"scenario": source, "set": ""}).data.clients == 10
    assert configured_scenario({"scenario": source}).data.clients == 10


def test_a_wrong_change_is_one_sentence() -> None:
    config = {"scenario": Scenario.parse({}).to_json(), "set": "data.clients=0"}
    with pytest.raises(UserError, match=r"^data.clients: must be at least 1, found 0$"):
        configured_scenario(config)
