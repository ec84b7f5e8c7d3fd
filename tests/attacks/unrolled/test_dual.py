"""Directions and inputs of several steps lead to each other, and masks to the schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from attacks.masks.equation import MaskEquation
from attacks.unrolled.dual import Duality
from attacks.unrolled.order import by_masks
from attacks.unrolled.problem import Update
from attacks.unrolled.vanishing import off_units
from attacks.victim.network import Network

EPOCH = [[3, 0, 6, 5], [7, 2, 1, 4]]


class Truth:
    """An update of eight examples, and their inputs and directions."""

    def __init__(self, victim: Any, *, bias: bool) -> None:
        self.update = Update.of(victim.leak, Network.of(victim.leak))
        self.equation = MaskEquation.of(self.update.midway(), 0, self.update.examples)
        normalised = victim.leak.model[0](victim.images).flatten(1).double()
        if bias:
            normalised = torch.cat([normalised, normalised.new_ones(len(normalised), 1)], dim=1)
        self.inputs = normalised @ torch.from_numpy(self.update.span).T
        rows = self.equation.values[:, None] * self.equation.right * self.equation.columns
        q = np.linalg.inv(normalised.numpy() @ np.linalg.pinv(rows)).T
        self.directions = q / np.linalg.norm(q, axis=1, keepdims=True)

    def duality(self) -> Duality:
        first = self.update.chain.layers[0]
        return Duality.of(
            self.equation, [first.weight, first.weight - self.update.reach * first.gradient]
        )

    def is_whole(self, directions: Any) -> bool:
        """Whether these are the examples' directions, each once."""
        agree = np.abs(self.directions @ np.array(directions).T) > 1 - 1e-4
        return bool((agree.sum(axis=0) == 1).all() and (agree.sum(axis=1) == 1).all())


@pytest.fixture(params=[False, True], ids=["no bias", "bias"])
def truth(train: Callable[..., Any], request: pytest.FixtureRequest) -> Truth:
    victim = train(8, 2, batches=EPOCH, widths=(512,), bias=request.param, seed=3)
    return Truth(victim, bias=request.param)


def test_all_directions_are_found(truth: Truth) -> None:
    directions, chosen = truth.duality().search(torch.Generator().manual_seed(0))
    assert truth.is_whole(directions[chosen])


def test_what_lies_between_two_directions_is_not_chosen(truth: Truth) -> None:
    known = list(truth.directions)
    false = known[0] + 0.7 * known[5]  # of the examples' span, and independent of the others
    found = [false / np.linalg.norm(false), *known]
    assert off_units(truth.equation, found[0]).sum() < off_units(truth.equation, found[1]).sum()
    assert sorted(truth.duality().chosen(found)) == list(range(1, 9))


def test_what_is_left_of_one_missing_example_leads_to_it(truth: Truth) -> None:
    duality, known = truth.duality(), list(truth.directions)
    proposals = list(duality._proposals(known[1:], torch.Generator().manual_seed(0)))
    missing = [one for one in proposals if abs(one @ known[0]) > 1 - 1e-4]
    assert missing


def test_masks_tell_who_was_in_which_batch_of_an_epoch(truth: Truth) -> None:
    taken = by_masks(truth.update, truth.inputs).taken
    assert [step.nonzero()[:, 0].tolist() for step in taken] == [sorted(batch) for batch in EPOCH]


def test_the_wrong_inputs_tell_another_order(truth: Truth) -> None:
    shuffled = truth.inputs[[1, 0, 3, 2, 5, 4, 7, 6]]
    taken = by_masks(truth.update, shuffled).taken
    assert [step.nonzero()[:, 0].tolist() for step in taken] != [sorted(batch) for batch in EPOCH]
