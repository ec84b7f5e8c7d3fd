"""How a network is built, in plain values: what a capture says of it, instead of its code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import nn

from defenses import DEFENSES, Chain, LocalPlan
from fl_sim.errors import UserError
from fl_sim.models.build import build_model, parameter_shapes
from fl_sim.scenario.sections import DefenseStage, Model, Positive
from fl_sim.seeds import torch_generator

MOST_NUMBERS, MOST_CLASSES = 2**26, 10**6
"""Numbers in one image, and classes, beyond which nothing is built."""
Numbers = Annotated[tuple[float, ...], Field(min_length=1)]


class Recipe(Model):
    """A `[model]`, with what its factory is told beside it, and the defenses, which may change it.

    Args:
        num_classes: K.
        input_shape: (C, H, W).
        mean: of each channel, for a network that normalises its input.
        std: of each channel, above 0.
        seed: of its initial weights.
        defense: the clients' defenses, in order.
    """

    num_classes: Annotated[int, Field(ge=1, le=MOST_CLASSES)]
    input_shape: tuple[Positive, Positive, Positive]
    mean: Numbers
    std: Numbers
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    defense: tuple[DefenseStage, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if math.prod(self.input_shape) > MOST_NUMBERS:
            raise ValueError(
                f"input_shape must be of at most {MOST_NUMBERS} numbers, found {self.input_shape}"
            )
        channels = self.input_shape[0]
        if not len(self.mean) == len(self.std) == channels or min(self.std) <= 0:
            raise ValueError(
                f"mean and std must hold a number for each of {channels} channels, and std above "
                f"0, found {self.mean} and {self.std}"
            )
        return self

    @property
    def foreign(self) -> tuple[str, ...]:
        """Names of code outside fl-sim and registered packages: `module:attr`."""
        names = (self.name, *(stage.name for stage in self.defense))
        return tuple(name for name in names if ":" in name)

    @property
    def defenses(self) -> Chain:
        """The clients' defenses.

        Raises:
            UserError: one can't be built.
        """
        try:
            return Chain([DEFENSES.build(each.name, **each.parameters) for each in self.defense])
        except ValueError as error:
            raise UserError(str(error)) from error

    def build(self, plans: Sequence[LocalPlan] = ()) -> nn.Module:
        """Return the initial network, in eval mode; the same weights at every call.

        Args:
            plans: how clients are to train it, where they are; defenses are asked whether they fit.

        Raises:
            UserError: it can't be built, or a defense doesn't fit.
        """
        model = build_model(self.name, seed=self.seed, **self._told())

        def draws(stage: int, hook: str) -> torch.Generator:
            return torch_generator(self.seed, "defense", stage, hook)

        try:
            return self.defenses.on_model(model, draws, plans).eval()
        except ValueError as error:
            raise UserError(str(error)) from error

    def require_shapes(self, found: Mapping[str, torch.Size]) -> None:
        """Raise unless a network would have parameters of these shapes, before it takes memory.

        Nothing is known beforehand of a network that a defense changes, or whose factory needs
        values.

        Raises:
            UserError: a parameter is missing or has another shape.
        """
        wanted = None if self.defense else parameter_shapes(self.name, **self._told())
        for name, shape in (wanted or {}).items():
            if name not in found:
                raise UserError(
                    f"model {self.name!r} has a parameter {name!r}, found no such array"
                )
            if found[name] != shape:
                raise UserError(
                    f"model {self.name!r} has {name!r} of shape {tuple(shape)}, found "
                    f"{tuple(found[name])}"
                )

    def _told(self) -> dict[str, Any]:
        keys = ("options", "num_classes", "input_shape", "bias", "mean", "std", "init")
        return {key: getattr(self, key) for key in keys}
