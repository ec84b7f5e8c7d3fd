"""The simulation is PyTorch's training, and its tangents are differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attacks.unrolled.problem import Update, full_batches
from attacks.unrolled.simulation import Unknowns
from attacks.victim.network import Network

SGDS = [
    {},
    {"momentum": 0.9, "weight_decay": 0.01},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
]


def of_client(victim: Any) -> tuple[Update, Unknowns]:
    update = Update.of(victim.leak, Network.of(victim.leak))
    layers = victim.leak.model
    inputs = update.chain.layers[0].augmented(layers[1](layers[0](victim.images)).numpy())
    alpha = torch.from_numpy(inputs @ update.span.T)
    return update, Unknowns(alpha, victim.labels, full_batches(update))


@pytest.mark.parametrize("options", SGDS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_moves_are_those_of_pytorch(
    bias: bool, options: dict[str, Any], train: Callable[..., Any]
) -> None:
    update, client = of_client(train(bias=bias, widths=(64, 32), dtype=torch.float64, **options))
    for moved, sent in zip(update.simulation.moves(client), update.moves, strict=True):
        # Some hundred roundings of weights that are larger than their moves.
        assert (moved - sent).norm() < 1e-12 * sent.norm()


@pytest.mark.parametrize("bend", [0.0, 0.3])
def test_tangents_are_central_differences(bend: float, train: Callable[..., Any]) -> None:
    victim = train(bias=True, widths=(64, 32), dtype=torch.float64, **SGDS[2])
    update, client = of_client(victim)
    simulation = update.simulation
    object.__setattr__(simulation, "bend", bend)
    draws = torch.Generator().manual_seed(0)
    parts = (client.inputs, client.labels, client.shares)
    way = Unknowns(*(torch.randn(1, *p.shape, generator=draws).double() for p in parts))
    step = 1e-6
    ends = [
        simulation.moves(
            client.moved(Unknowns(sign * way.inputs[0], sign * way.labels[0], sign * way.shares[0]))
        )
        for sign in (step, -step)
    ]
    _, tangents = simulation.moves_and_tangents(client, way)
    for up, down, tangent in zip(*ends, tangents, strict=True):
        difference = (up - down) / (2 * step)
        assert (difference - tangent[0]).norm() < 1e-6 * difference.norm()
