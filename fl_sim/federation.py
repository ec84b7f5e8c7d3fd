"""Who holds which examples, and which of them a client trains on in a step.

Everything here is a pure function of the scenario. The client trains on what it returns, and the
judge replays it: the truth is never on the wire.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import one_hot

from defenses import DEFENSES, Chain, ClientStep, LocalPlan, Place
from defenses.pairs import require_consistent
from fl_sim.copies import copy_model
from fl_sim.data import Dataset, build_dataset
from fl_sim.data.partition import ALPHA, CLASSES, split
from fl_sim.errors import UserError
from fl_sim.recipe import Recipe
from fl_sim.scenario import Scenario
from fl_sim.seeds import numpy_generator, torch_generator

MOST_TEST_EXAMPLES = 1000
"""Test images that a round's accuracy is measured on, unless the scenario asks for more."""


@dataclass(frozen=True, eq=False)
class Federation:
    """A scenario's data set, its clients' shares and their defenses.

    Args:
        scenario: what to set up.
        dataset: the data.
        shares: for each client, the indices of its training examples.
        defenses: what every client does.
    """

    scenario: Scenario
    dataset: Dataset
    shares: Sequence[NDArray[np.int64]]
    defenses: Chain

    @classmethod
    def of(cls, scenario: Scenario) -> Federation:
        """Load, split and check; the last few scenarios are remembered.

        Raises:
            UserError: the data can't be had or split so, or a client holds too few examples for a
                batch.
        """
        return _federation(scenario)

    def local_steps(self, client: int) -> int:
        """Return the SGD steps that a client takes in a round."""
        settings = self.scenario.client
        if settings.local_epochs is None:
            return settings.local_steps or 1
        return settings.local_epochs * self._steps_an_epoch(client)

    def plan(self, client: int) -> LocalPlan:
        """Return how a client trains in a round."""
        settings, share = self.scenario.client, len(self.shares[client])
        return LocalPlan(
            local_steps=self.local_steps(client),
            batch_size=min(settings.batch_size * self.defenses.draws, share),
            share_size=share,
            local_epochs=settings.local_epochs,
            mode=settings.mode,
        )

    @cached_property
    def claims_privacy(self) -> bool:
        """Whether any client's defenses claim differential privacy, under any noise at all."""
        plans = map(self.plan, range(len(self.shares)))
        stages = self.defenses.stages
        claims = (stage.privacy(plan) for plan in plans for stage in stages)
        return any(claim is not None and claim.noise > 0 for claim in claims)

    def reported_examples(self, client: int) -> int:
        """Return what a client reports as its examples, the weight of its update.

        With epochs the size of its share, as Flower's clients do; with steps B times their number.
        """
        settings = self.scenario.client
        if settings.local_epochs is None:
            return settings.batch_size * self.local_steps(client)
        return len(self.shares[client])

    def epoch_of(self, client: int, step: int) -> int:
        """Return which pass over the client's share a step belongs to, from 0.

        Within a pass no example is drawn twice. Where steps are told, each is a pass of its own.
        """
        if self.scenario.client.local_epochs is None:
            return step
        return step // self._steps_an_epoch(client)

    def client_batch(self, client: int, server_round: int, step: int) -> ClientStep:
        """Draw the raw examples of a local step, without replacement.

        With epochs, the batches are slices of the share in an order that is shuffled for each
        epoch, the last one with what is left. An example that the defenses mix is followed by its
        partners, those next in that order, each as often a partner as it is followed by one.

        Returns:
            B·draws images (N, C, H, W) and one-hot labels (N, K), where `draws` is what the
            defenses use up for one training example; of the last batch of an epoch, fewer. Under
            Poisson sampling B on average, or none.
        """
        chosen = torch.from_numpy(self._chosen(client, server_round, step))
        labels = one_hot(self.dataset.labels[chosen], self.dataset.num_classes).float()
        place = Place(server_round, step)
        return ClientStep(self.dataset.images[chosen], labels, place=place)

    def _chosen(self, client: int, server_round: int, step: int) -> NDArray[np.int64]:
        """Return the indices of a step's raw examples: B first ones, then B partners, and so on."""
        share, settings, draws = self.shares[client], self.scenario.client, self.defenses.draws
        place = (server_round, client)
        if settings.local_epochs is None:
            generator = numpy_generator(self.scenario.seed, "batch", *place, step)
            if self.defenses.is_poisson:
                return share[generator.random(len(share)) < settings.batch_size / len(share)]
            return generator.choice(share, settings.batch_size * draws, replace=False)
        epoch, index = divmod(step, self._steps_an_epoch(client))
        generator = numpy_generator(self.scenario.seed, "epoch", *place, epoch)
        order = generator.permutation(share)
        part = slice(index * settings.batch_size, (index + 1) * settings.batch_size)
        return np.concatenate([np.roll(order, -shift)[part] for shift in range(draws)])

    def _steps_an_epoch(self, client: int) -> int:
        return -(-len(self.shares[client]) // self.scenario.client.batch_size)

    def training_batch(self, client: int, server_round: int, step: int) -> ClientStep:
        """Return what a client trains on: the raw examples after all defenses' `on_batch`."""
        raw = self.client_batch(client, server_round, step)
        return self.defenses.on_batch(raw, self.draws_of(client, server_round, step))

    def draws_of(self, client: int, server_round: int, step: int) -> _Draws:
        """Return the generators of the defenses' draws, by stage and hook."""
        return _Draws(self.scenario.seed, (server_round, client, step))

    @property
    def test_examples(self) -> int:
        """Test images on which accuracy is measured; where the scenario is silent, up to 1,000."""
        available = len(self.dataset.test_labels)
        return self.scenario.data.test_examples or min(available, MOST_TEST_EXAMPLES)

    @property
    def recipe(self) -> Recipe:
        """How the network is built."""
        told, dataset = self.scenario.model, self.dataset
        return Recipe(
            **dict(told),
            num_classes=dataset.num_classes,
            input_shape=dataset.input_shape,
            mean=tuple(map(float, dataset.mean)),
            std=tuple(map(float, dataset.std)),
            seed=self.scenario.seed,
            defense=tuple(self.scenario.defense),
        )

    def build_model(self) -> nn.Module:
        """Return the initial network, in eval mode; the same weights at every call."""
        return copy_model(_initial_model(self.scenario))

    def sampled_clients(self, server_round: int) -> list[int]:
        """Return the clients that take part in a round, in order."""
        clients = self.scenario.data.clients
        count = self.scenario.clients_a_round
        generator = numpy_generator(self.scenario.seed, "sample", server_round)
        return sorted(int(c) for c in generator.choice(clients, count, replace=False))


@dataclass(frozen=True)
class _Draws:
    """A generator for each (stage, hook), named by where it is used."""

    seed: int
    place: tuple[int, ...]

    def __call__(self, stage: int, hook: str) -> torch.Generator:
        return torch_generator(self.seed, "defense", *self.place, stage, hook)


@lru_cache(maxsize=2)
def _dataset(name: str, options: str) -> Dataset:
    return build_dataset(name, options=json.loads(options))


@lru_cache(maxsize=4)
def _federation(scenario: Scenario) -> Federation:
    dataset = _dataset(scenario.data.name, json.dumps(scenario.data.options, sort_keys=True))
    available = len(dataset.test_labels)
    if (scenario.data.test_examples or 0) > available:
        raise UserError(
            f"data.test_examples must be at most {available}, the test images of "
            f"{scenario.data.name!r}, found {scenario.data.test_examples}"
        )
    shares = _shares(scenario, dataset)
    try:
        stages = [DEFENSES.build(stage.name, **stage.parameters) for stage in scenario.defense]
        require_consistent(stages, local_steps=scenario.client.local_steps)
        defenses = Chain(stages)
    except ValueError as error:
        raise UserError(str(error)) from error
    _require_batches(scenario, shares, defenses)
    return Federation(scenario, dataset, shares, defenses)


def _shares(scenario: Scenario, dataset: Dataset) -> list[NDArray[np.int64]]:
    """Split the training examples, and leave each client so many of its share as are wanted."""
    data = scenario.data
    shares = split(
        dataset.labels.numpy(),
        data.clients,
        scheme=data.partition,
        alpha=data.alpha or ALPHA,
        classes=data.classes or CLASSES,
        generator=numpy_generator(scenario.seed, "partition"),
    )
    wanted = data.examples_per_client
    if wanted is None:
        return shares
    for client, share in enumerate(shares):
        if len(share) < wanted:
            raise UserError(
                "data.examples_per_client must be at most the examples that each client gets: "
                f"client {client} gets {len(share)}, found {wanted}"
            )
        generator = numpy_generator(scenario.seed, "examples of a client", client)
        shares[client] = np.sort(generator.choice(share, wanted, replace=False))
    return shares


def _require_batches(
    scenario: Scenario, shares: Sequence[NDArray[np.int64]], defenses: Chain
) -> None:
    """Raise unless every client holds the examples of a step; in epochs, one and its partners."""
    draws, is_poisson = defenses.draws, defenses.is_poisson
    in_epochs = scenario.client.local_epochs is not None
    needed = draws if in_epochs else scenario.client.batch_size * draws
    if is_poisson and draws > 1:
        raise UserError(
            "a defense draws every example on its own (Poisson sampling), and another one mixes "
            f"{draws} into one: leave one of them out"
        )
    for client, share in enumerate(shares):
        if len(share) >= needed:
            continue
        if in_epochs:
            raise UserError(
                f"a client must hold at least the {draws} examples that its defenses mix: client "
                f"{client} has {len(share)}"
            )
        pairs = f" × {draws}" if draws > 1 else ""
        raise UserError(
            f"client.batch_size{pairs} must be at most the examples that a client holds: "
            f"client {client} has {len(share)}, a step takes {needed}"
        )


@lru_cache(maxsize=2)
def _initial_model(scenario: Scenario) -> nn.Module:
    federation = Federation.of(scenario)
    plans = {federation.plan(client) for client in range(scenario.data.clients)}
    return federation.recipe.build(sorted(plans, key=str))
