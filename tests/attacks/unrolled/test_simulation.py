"""The simulation is PyTorch's training, and its tangents are differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attacks.unrolled.problem import Update
from attacks.unrolled.schedule import Timetable
from attacks.unrolled.simulation import Unknowns
from attacks.unrolled.tangents import Directions, moves_and_tangents
from attacks.victim.network import Network

SGDS = [
    {},
    {"momentum": 0.9, "weight_decay": 0.01},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
]
BATCHES = [(0, 1, 2), (3,), (2, 1, 3), (0,)]
"""Two epochs of four examples; the last batch is smaller."""


def of_client(victim: Any) -> tuple[Update, Unknowns]:
    update = Update.of(victim.leak, Network.of(victim.leak))
    layers = victim.leak.model
    inputs = update.chain.layers[0].augmented(layers[1](layers[0](victim.images)).numpy())
    alpha = torch.from_numpy(inputs @ update.span.T)
    timetable = Timetable.of(victim.leak.steps, 4)
    taken = timetable.taken if timetable.batches is None else timetable.batches
    return update, Unknowns(alpha, victim.labels, taken / timetable.sizes[:, None])


@pytest.mark.parametrize("options", SGDS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batches", [None, BATCHES], ids=["full", "told"])
def test_moves_are_those_of_pytorch(
    batches: Any, bias: bool, options: dict[str, Any], train: Callable[..., Any]
) -> None:
    told = {"batches": batches, "steps": 4, "widths": (64, 32), "dtype": torch.float64}
    update, client = of_client(train(bias=bias, **told, **options))
    for moved, sent in zip(update.simulation.moves(client), update.moves, strict=True):
        # Some hundred roundings of weights that are larger than their moves.
        assert (moved - sent).norm() < 1e-12 * sent.norm()


@pytest.mark.parametrize("options", SGDS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bend", [0.0, 0.3])
@pytest.mark.parametrize("batches", [None, BATCHES], ids=["full", "told"])
def test_tangents_are_central_differences(
    batches: Any, bend: float, bias: bool, options: dict[str, Any], train: Callable[..., Any]
) -> None:
    told = {"batches": batches, "steps": 4, "widths": (64, 32, 16), "dtype": torch.float64}
    update, client = of_client(train(bias=bias, **told, **options))
    simulation = dataclasses.replace(update.simulation, bend=bend)
    draws = torch.Generator().manual_seed(0)
    parts = (client.inputs, client.labels, client.shares)
    way = Unknowns(*(torch.randn(p.shape, generator=draws).double() for p in parts))
    directions = Directions(*(p[..., None] for p in (way.inputs, way.labels, way.shares)))
    step = 1e-6
    ends = [
        simulation.moves(
            client.moved(Unknowns(sign * way.inputs, sign * way.labels, sign * way.shares))
        )
        for sign in (step, -step)
    ]
    columns = [None, torch.tensor([3, 5, 64])[: 2 + bias], None, None]
    _, tangents = moves_and_tangents(simulation, client, directions, columns)
    for up, down, tangent, only in zip(*ends, tangents, columns, strict=True):
        difference = (up - down) / (2 * step)
        difference = difference if only is None else difference[:, only]
        assert (difference - tangent[..., 0]).norm() < 1e-6 * difference.norm()
