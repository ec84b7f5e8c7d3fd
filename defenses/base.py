"""The interface of a defense: four hooks on a client's path, each the identity by default."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from attacks.facts import Fact
from defenses.pairs import overrides, require_consistent
from defenses.privacy import LocalPlan, Privacy

Gradients = Mapping[str, Tensor]
State = Mapping[str, Tensor]
States = Mapping[int, State]
"""A stage's index in its chain -> what it keeps."""
NOTHING: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Place:
    """Where in a run a hook is called, and what this client's stage keeps.

    Args:
        round: from 1.
        step: of the round, from 0; in `on_update`, the number of steps that were taken.
        state: name -> tensor, on the model's device: what the stage returned last, in this round or
            in an earlier one that the client took part in; empty until then, and in `on_batch`.
    """

    round: int = 1
    step: int = 0
    state: State = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, eq=False)
class WithState:
    """What `on_gradient` or `on_update` returns in order to keep something.

    Args:
        gradients: what the hook returns otherwise.
        state: name -> dense tensor, of which copies are kept. It takes the place of all that the
            stage has kept, and comes back in its next hook's `Place`.

    Raises:
        TypeError: state is anything else.
    """

    gradients: Gradients
    state: State

    def __post_init__(self) -> None:
        if not isinstance(self.state, Mapping):
            raise TypeError(f"{_RULE}, found {type(self.state).__name__}")
        for name, value in self.state.items():
            if not (isinstance(name, str) and name and _is_dense(value)):
                kind = type(value).__name__
                if isinstance(value, Tensor):
                    kind = f"{value.layout} {value.dtype} on {value.device}"
                raise TypeError(f"{_RULE}, found {name!r}: {kind}")
        kept = {name: value.detach().clone() for name, value in self.state.items()}
        object.__setattr__(self, "state", kept)


_RULE = "state must map names to dense tensors"


def _is_dense(value: object) -> bool:
    if not isinstance(value, Tensor):
        return False
    return value.layout is torch.strided and not (value.is_quantized or value.is_meta)


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
        place: the round, the step and the stage's state.
        expected_examples: what a step takes on average, where its size is drawn; None elsewhere.
    """

    images: Tensor
    labels: Tensor
    model: nn.Module | None = None
    loss: Tensor | None = None
    per_example_gradients: Callable[[], Gradients] | None = None
    place: Place = Place()
    expected_examples: int | None = None


class Defense:
    """Identity hooks; a defense is a frozen dataclass that overrides those it needs.

    Randomness comes from the generator alone, so that a defense's draw can be replayed. What a
    client keeps from one call to the next is a `Place`'s state: `on_gradient` and `on_update` read
    it there and replace it by returning `WithState`. It stays with the client.
    """

    draws: ClassVar[int] = 1
    """Raw examples that `on_batch` uses up for each training example that it returns."""
    is_poisson: ClassVar[bool] = False
    """Whether each example is drawn on its own at the rate B/n, so that batches vary in size."""
    starts_from_examples: ClassVar[bool] = False
    """Whether `on_gradient` takes the examples' own gradients, not what it is given."""

    @property
    def clips(self) -> Literal["examples", "gradient", "update"] | None:
        """What is scaled down to a norm: each example's gradient, a step's, or the update."""
        return None

    @property
    def is_random(self) -> bool:
        """Whether what leaves the client depends on draws of its own, as is assumed unless told."""
        return True

    def on_model(self, model: nn.Module, generator: torch.Generator) -> nn.Module:
        """Change the architecture, before anything is trained: the server's and all clients'."""
        return model

    def check(self, model: nn.Module, plan: LocalPlan) -> None:
        """Refuse, before anything is trained, what the defense can't do its work on.

        Args:
            model: the network, before this defense's `on_model`.
            plan: how a client trains.

        Raises:
            ValueError: it doesn't fit them, in one sentence.
        """

    def on_batch(self, step: ClientStep, generator: torch.Generator) -> ClientStep:
        """Change images and labels before the loss is computed.

        It is replayed to know what was trained on, so it has a round and a step, and no state.
        """
        return step

    def on_gradient(
        self, step: ClientStep, gradients: Gradients, generator: torch.Generator
    ) -> Gradients | WithState:
        """Change the gradient of the mean loss before the SGD step."""
        return gradients

    def on_update(
        self, update: Gradients, place: Place, generator: torch.Generator
    ) -> Gradients | WithState:
        """Change the weight difference before it is sent."""
        return update

    def facts(self) -> tuple[Fact, ...]:
        """Return what an aware attacker knows, one fact as a rule: the parameters, never a draw."""
        return ()

    def facts_of_mean(self, clients: int) -> tuple[Fact, ...]:
        """Return what of `facts` is true of the mean of several clients' updates.

        Each client changes its own gradient or update in its own way: by default nothing is, of a
        defense that does.

        Args:
            clients: n, whose updates are averaged, at least 2.
        """
        is_own = overrides(self, "on_gradient") or overrides(self, "on_update")
        return () if is_own else self.facts()

    def privacy(self, plan: LocalPlan) -> Privacy | None:
        """Return the differential privacy of what leaves a client in a round; None claims none."""
        return None


GeneratorFor = Callable[[int, str], torch.Generator]


@dataclass(frozen=True)
class Chain:
    """Several defenses, applied in order; each stage and hook has a generator of its own.

    Raises:
        ValueError: two of them contradict each other.
    """

    stages: Sequence[Defense]

    def __post_init__(self) -> None:
        require_consistent(self.stages)

    @property
    def is_poisson(self) -> bool:
        """Whether a stage asks for Poisson sampling."""
        return any(stage.is_poisson for stage in self.stages)

    def overrides(self, hook: str) -> bool:
        """Say whether a stage does something in a hook; where none does, it costs nothing."""
        return any(overrides(stage, hook) for stage in self.stages)

    @property
    def draws(self) -> int:
        """Raw examples for one training example."""
        product = 1
        for stage in self.stages:
            product *= stage.draws
        return product

    def on_model(
        self, model: nn.Module, generator_for: GeneratorFor, plans: Sequence[LocalPlan] = ()
    ) -> nn.Module:
        """Pass a model through every stage.

        Args:
            model: the network.
            generator_for: gives each stage its generator.
            plans: how clients train; each stage is asked whether it fits them.

        Raises:
            ValueError: a stage doesn't.
        """
        for index, stage in enumerate(self.stages):
            for plan in plans:
                stage.check(model, plan)
            model = stage.on_model(model, generator_for(index, "model"))
        return model

    def on_batch(self, step: ClientStep, generator_for: GeneratorFor) -> ClientStep:
        """Pass a batch through every stage."""
        for index, stage in enumerate(self.stages):
            step = stage.on_batch(step, generator_for(index, "batch"))
        return step

    def on_gradient(
        self, step: ClientStep, gradients: Gradients, states: States, generator_for: GeneratorFor
    ) -> tuple[Gradients, States]:
        """Pass a gradient through every stage; return it and what the stages keep."""
        for index, stage in enumerate(self.stages):
            here = dataclasses.replace(step, place=_with(step.place, states, index))
            result = stage.on_gradient(here, gradients, generator_for(index, "gradient"))
            gradients, states = _parted(result, states, index)
        return gradients, states

    def on_update(
        self, update: Gradients, place: Place, states: States, generator_for: GeneratorFor
    ) -> tuple[Gradients, States]:
        """Pass a weight difference through every stage; return it and what the stages keep."""
        for index, stage in enumerate(self.stages):
            here = _with(place, states, index)
            result = stage.on_update(update, here, generator_for(index, "update"))
            update, states = _parted(result, states, index)
        return update, states

    def facts(self) -> tuple[Fact, ...]:
        """Return the facts of all stages, in order; see `attacks.facts.Told`."""
        return tuple(fact for stage in self.stages for fact in stage.facts())

    def facts_of_mean(self, clients: int) -> tuple[Fact, ...]:
        """Return what of them is true of the mean of n clients' updates, in order."""
        return tuple(fact for stage in self.stages for fact in stage.facts_of_mean(clients))


def _with(place: Place, states: States, index: int) -> Place:
    return dataclasses.replace(place, state=MappingProxyType(states.get(index, NOTHING)))


def _parted(result: Gradients | WithState, states: States, index: int) -> tuple[Gradients, States]:
    """Return a stage's gradients, and the states with its new one, if it has one."""
    if isinstance(result, WithState):
        return result.gradients, {**states, index: result.state}
    return result, states


def is_number(value: object) -> bool:
    """Say whether a parameter is a real number; booleans and NaN aren't."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)


def replace_batch(step: ClientStep, images: Tensor, labels: Tensor) -> ClientStep:
    """Return the step with other images and labels."""
    return dataclasses.replace(step, images=images, labels=labels)
