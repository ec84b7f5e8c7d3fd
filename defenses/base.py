"""The interface of a defense: four hooks on a client's path, each the identity by default."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.facts import Fact

Gradients = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class ClientStep:
    """One local step as a defense sees it.

    Args:
        images: (B, C, H, W), pixels in [0, 1].
        labels: (B, K), rows on the simplex.
        model: the network at the step's weights; None in `on_batch`, which reads no model.
        loss: the mean loss; None before it is computed.
        per_example_gradients: parameter name -> (B, *shape), computed when called; None before the
            loss is.
    """

    images: Tensor
    labels: Tensor
    model: nn.Module | None = None
    loss: Tensor | None = None
    per_example_gradients: Callable[[], Gradients] | None = None


class Defense:
    """Identity hooks; a defense is a frozen dataclass that overrides those it needs.

    Randomness comes from the generator alone, so that a defense's draw can be replayed.
    """

    draws: ClassVar[int] = 1
    """Raw examples that `on_batch` uses up for each training example that it returns."""

    def on_model(self, model: nn.Module, generator: torch.Generator) -> nn.Module:
        """Change the architecture, before anything is trained."""
        return model

    def on_batch(self, step: ClientStep, generator: torch.Generator) -> ClientStep:
        """Change images and labels before the loss is computed."""
        return step

    def on_gradient(
        self, step: ClientStep, gradients: Gradients, generator: torch.Generator
    ) -> Gradients:
        """Change the gradient of the mean loss before the SGD step."""
        return gradients

    def on_update(self, update: Gradients, generator: torch.Generator) -> Gradients:
        """Change the weight difference before it is sent."""
        return update

    def facts(self) -> tuple[Fact, ...]:
        """Return what an aware attacker knows, one fact as a rule: the parameters, never a draw."""
        return ()


GeneratorFor = Callable[[int, str], torch.Generator]


@dataclass(frozen=True)
class Chain:
    """Several defenses, applied in order; each stage and hook has a generator of its own."""

    stages: Sequence[Defense]

    @property
    def draws(self) -> int:
        """Raw examples for one training example."""
        product = 1
        for stage in self.stages:
            product *= stage.draws
        return product

    def on_model(self, model: nn.Module, generator_for: GeneratorFor) -> nn.Module:
        """Pass a model through every stage."""
        for index, stage in enumerate(self.stages):
            model = stage.on_model(model, generator_for(index, "model"))
        return model

    def on_batch(self, step: ClientStep, generator_for: GeneratorFor) -> ClientStep:
        """Pass a batch through every stage."""
        for index, stage in enumerate(self.stages):
            step = stage.on_batch(step, generator_for(index, "batch"))
        return step

    def on_gradient(
        self, step: ClientStep, gradients: Gradients, generator_for: GeneratorFor
    ) -> Gradients:
        """Pass a gradient through every stage."""
        for index, stage in enumerate(self.stages):
            gradients = stage.on_gradient(step, gradients, generator_for(index, "gradient"))
        return gradients

    def on_update(self, update: Gradients, generator_for: GeneratorFor) -> Gradients:
        """Pass a weight difference through every stage."""
        for index, stage in enumerate(self.stages):
            update = stage.on_update(update, generator_for(index, "update"))
        return update

    def facts(self) -> tuple[Fact, ...]:
        """Return the facts of all stages, in order; see `attacks.facts.Told`."""
        return tuple(fact for stage in self.stages for fact in stage.facts())


def is_number(value: object) -> bool:
    """Say whether a parameter is a real number; booleans and NaN aren't."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)


def replace_batch(step: ClientStep, images: Tensor, labels: Tensor) -> ClientStep:
    """Return the step with other images and labels."""
    return dataclasses.replace(step, images=images, labels=labels)
