"""Two neighbouring data sets, and what a client's defenses let out of either."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from defenses import Chain, ClientStep, Defense, LocalPlan, Place, Privacy
from defenses.base import NOTHING, GeneratorFor, Gradients, States
from fl_sim.errors import UserError
from fl_sim.seeds import seed_for, seeded_layers, torch_generator

LENGTH = 100.0
"""Of each tensor's gradient, in sensitivities: so far beyond any clipping that noise which is added
before it is clipped away, too."""
SHAPE = (1, 4, 4)
PLANS = {
    "update": LocalPlan(local_steps=1, batch_size=1, share_size=1),
    "example": LocalPlan(local_steps=1, batch_size=2, share_size=2),
}
"""Unit -> one step that takes all examples, so that nothing is hidden by who takes part."""


class _Steep(nn.Module):
    """Logits of 0 with a slope: gradients of any length, those of the two classes opposite."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, logits: Tensor) -> Tensor:
        """Return zeros that pass gradients on."""
        return self.slope * (logits - logits.detach())


@dataclass(frozen=True, eq=False)
class AuditedClient:
    """A client that takes one step on a fixed data set, behind its defenses.

    Args:
        defenses: what it does.
        step: as defenses see it, with the examples' gradients at hand.
        gradients: of the mean loss.
        seed: of all draws.
        name: tells its draws from those of another.
    """

    defenses: Chain
    step: ClientStep
    gradients: Gradients
    seed: int
    name: str

    @property
    def last_gradient(self) -> NDArray[np.float64]:
        """(d,): that of the last example, in which two neighbours differ."""
        assert self.step.per_example_gradients is not None
        rows = self.step.per_example_gradients()
        return np.concatenate([rows[name][-1].double().numpy().ravel() for name in self.gradients])

    def release(self, draw: int, *, server_round: int = 1, states: States = NOTHING) -> Released:
        """Return what leaves it, the update at a learning rate of 1.

        Args:
            draw: a number; each has generators of its own.
            server_round: from 1.
            states: what its defenses keep from the round before.

        Raises:
            UserError: a defense raises, or its answer isn't an update.
        """

        def generator_for(stage: int, hook: str) -> torch.Generator:
            first = _first_seed(self.seed, self.name, stage, hook)
            return torch.Generator().manual_seed((first + draw) % 2**63)

        try:
            return self._release(server_round, states, generator_for)
        except Exception as error:
            sentence = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"the defense can't be run, it raised {sentence}") from error

    def _release(self, server_round: int, states: States, generator_for: GeneratorFor) -> Released:
        gradients: Gradients = self.gradients
        if self.defenses.overrides("on_gradient"):
            step = dataclasses.replace(self.step, place=Place(server_round, 0))
            own = {name: part.clone() for name, part in gradients.items()}
            gradients, states = self.defenses.on_gradient(step, own, states, generator_for)
        sent: Gradients = {name: -gradients[name].double() for name in self.gradients}
        if self.defenses.overrides("on_update"):
            place = Place(server_round, 1)
            sent, states = self.defenses.on_update(sent, place, states, generator_for)
        for name, part in self.gradients.items():
            if sent[name].shape != part.shape:
                raise ValueError(
                    f"{name!r} must keep its shape {tuple(part.shape)}, found "
                    f"{tuple(sent[name].shape)}"
                )
        values = torch.cat([sent[name].double().flatten() for name in self.gradients])
        return Released(values.numpy(), states)


@dataclass(frozen=True, eq=False)
class Released:
    """What leaves a client, (d,) numbers, and what its defenses keep."""

    values: NDArray[np.float64]
    states: States


@functools.lru_cache(maxsize=16)
def _first_seed(seed: int, *path: str | int) -> int:
    return seed_for(seed, "audit", *path)


def neighbours(
    defense: Defense, claim: Privacy, *, seed: int
) -> tuple[AuditedClient, AuditedClient]:
    """Return a client of two neighbouring data sets, all of whose gradients are long.

    Of the unit "update" they are an image under one label and under another, whose gradients are
    opposite. Of the unit "example", one example, and the same with another one whose gradient
    points the other way.

    Args:
        defense: the clients'.
        claim: its own, for its unit and its sensitivity.
        seed: of all draws.

    Raises:
        UserError: the defense doesn't fit the network.
    """
    plan = PLANS[claim.unit]
    image = 0.5 + 0.5 * torch.rand(1, *SHAPE, generator=torch_generator(seed, "audited image"))
    classes = torch.eye(2)
    if claim.unit == "update":
        data = [(image, classes[:1]), (image, classes[1:])]
    else:
        data = [(image / 2, classes[:1]), (torch.cat([image / 2, image]), classes)]
    model, chain = _network(seed, data, LENGTH * claim.sensitivity), Chain([defense])
    try:
        defense.check(model, plan)
    except ValueError as error:
        raise UserError(str(error)) from error
    expected = plan.batch_size if claim.unit == "example" else None
    first, second = (
        AuditedClient(chain, *_step_of(model, images, labels, expected), seed, name)
        for name, (images, labels) in zip(("without", "with"), data, strict=True)
    )
    return first, second


def _network(seed: int, data: Sequence[tuple[Tensor, Tensor]], length: float) -> nn.Module:
    """Return a network on which no tensor of any example's gradient is shorter than a length."""
    with seeded_layers(seed_for(seed, "audited network")):
        layers = nn.Linear(16, 8, bias=False), nn.Linear(8, 2, bias=False)
    body = [nn.Flatten(), layers[0], nn.LeakyReLU(0.5), layers[1]]
    model = nn.Sequential(*body, _Steep(1.0))
    rows = [row for images, labels in data for row in _example_gradients(model, images, labels)]
    shortest = min(float(part.norm()) for row in rows for part in row.values())
    return nn.Sequential(*body, _Steep(length / shortest)).eval()


def _step_of(
    model: nn.Module, images: Tensor, labels: Tensor, expected: int | None
) -> tuple[ClientStep, dict[str, Tensor]]:
    rows = _example_gradients(model, images, labels)
    stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    step = ClientStep(
        images,
        labels,
        model,
        cross_entropy(model(images), labels).detach(),
        lambda: {name: part.clone() for name, part in stacked.items()},
        expected_examples=expected,
    )
    return step, {name: part.mean(dim=0) for name, part in stacked.items()}


def _example_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
    trained = dict(model.named_parameters())
    rows = []
    for image, label in zip(images, labels, strict=True):
        loss = cross_entropy(model(image[None]), label[None])
        own = torch.autograd.grad(loss, list(trained.values()))
        rows.append(dict(zip(trained, own, strict=True)))
    return rows
