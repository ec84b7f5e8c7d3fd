"""A defense that keeps silent: what a client would send without one of its stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from defenses import DEFENSES, ClientStep, Defense
from fl_sim.federation import Federation
from fl_sim.scenario import Scenario
from fl_sim.scenario.sections import DefenseStage
from fl_sim.seeds import torch_generator

_NAME = f"{__name__}:Silenced"


@dataclass(frozen=True)
class Silenced(Defense):
    """Take a stage's place and do nothing; the client draws the same examples as with it.

    Of examples that the stage mixes, the first ones are left. The network is the stage's own only
    where it has other parameters without it.

    Args:
        stage: the name and the parameters of the stage.
    """

    stage: Mapping[str, Any]

    def __post_init__(self) -> None:
        told = DefenseStage.model_validate(dict(self.stage))
        defense: Defense = DEFENSES.build(told.name, **told.parameters)
        object.__setattr__(self, "defense", defense)
        for name in ("draws", "is_poisson"):
            object.__setattr__(self, name, getattr(defense, name))

    def on_model(self, model: nn.Module, generator: torch.Generator) -> nn.Module:
        """Leave the network as it is, unless its parameters would be others."""
        changed: nn.Module = self.defense.on_model(model, generator)  # type: ignore[attr-defined]
        return model if _shapes(model) == _shapes(changed) else changed

    def on_batch(self, step: ClientStep, generator: torch.Generator) -> ClientStep:
        """Leave out the examples that others would be mixed with."""
        count = len(step.images) // self.draws
        return dataclasses.replace(step, images=step.images[:count], labels=step.labels[:count])


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def parts_of_network(scenario: Scenario) -> frozenset[int]:
    """Return the numbers of the defenses that give the network other parameters."""
    federation = Federation.of(scenario)
    model = federation.recipe.model_copy(update={"defense": ()}).build()
    found = set()
    for index, stage in enumerate(federation.defenses.stages):
        before = _shapes(model)
        model = stage.on_model(model, torch_generator(scenario.seed, "defense", index, "model"))
        if _shapes(model) != before:
            found.add(index)
    return frozenset(found)


def without(scenario: Scenario, *stages: int) -> Scenario:
    """Return a scenario in which some of its defenses keep silent.

    Args:
        scenario: with defenses.
        stages: their numbers.
    """
    return scenario.with_changes(
        {
            f"defense.{index}": {"name": _NAME, "stage": scenario.defense[index].model_dump()}
            for index in stages
        }
    )
