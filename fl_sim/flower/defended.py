"""What a client's defenses change of its update, measured by training again without them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_sim.flower.client import train_locally
from fl_sim.scenario import Scenario
from fl_sim.silenced import parts_of_network, without

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Defended:
    """What defenses change of one client's update.

    Args:
        snr_db: the update's size without them over that of all that they change of it, as
            20·log₁₀ of L2 norms; None where they change nothing, or there is no update.
        unchanged: those without which the update would be the same, number for number; joined by
            "+", None for none. One that gives the network other parameters can't be left out.
        nonzero: share of the update's entries that aren't zero.
        sent_bytes: of the weights that the client sends in a round.
    """

    snr_db: float | None
    unchanged: str | None
    nonzero: float
    sent_bytes: int


def is_measured(scenario: Scenario, server_round: int) -> bool:
    """Say whether a round is one of those in which defenses are measured: 1, 2, 4, 8 and so on."""
    is_power = server_round > 0 and server_round & (server_round - 1) == 0
    return bool(scenario.defense) and is_power


def measure_defenses(
    scenario: Scenario, client: int, server_round: int, received: Weights
) -> Defended:
    """Train a client on what it received, with its defenses, without each, and without any.

    Draws are those of the run. What a defense keeps from round to round isn't known here: one with
    error feedback is measured as in its first round.

    Args:
        scenario: with defenses.
        client: whose data.
        server_round: from 1.
        received: the weights that the client was sent.
    """

    def update(told: Scenario) -> Tensor:
        weights = train_locally(told, client, server_round, received).weights
        parts = [(weights[name].cpu().double() - received[name]).flatten() for name in received]
        return torch.cat(parts)

    sent, stages = update(scenario), range(len(scenario.defense))
    fixed = parts_of_network(scenario)
    silent = [
        scenario.defense[index].name
        for index in stages
        if index not in fixed and torch.equal(update(without(scenario, index)), sent)
    ]
    clear = update(without(scenario, *stages))
    size, change = float(clear.norm()), float((sent - clear).norm())
    return Defended(
        20 * math.log10(size / change) if size > 0 and 0 < change < math.inf else None,
        "+".join(dict.fromkeys(silent)) or None,
        float((sent != 0).double().mean()),
        sum(part.numel() * part.element_size() for part in received.values()),
    )
