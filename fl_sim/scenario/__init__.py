"""Scenarios: what a TOML file may say, what is wrong with it, and where it comes from."""

from fl_sim.scenario.schema import Scenario
from fl_sim.scenario.sections import Attack

__all__ = ["Attack", "Scenario"]
