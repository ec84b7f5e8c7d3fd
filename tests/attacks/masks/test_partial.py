"""What is said of examples that are found while others are missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attacks import Status
from attacks.dense.network import FullyConnected
from attacks.masks.equation import MaskEquation
from attacks.masks.find import find_pairs
from attacks.masks.partial import partial_answer
from attacks.victim.network import Network

Build = Callable[..., Any]


@pytest.mark.parametrize(
    ("options", "has_labels"),
    [({}, True), ({"bias": False}, False), ({"widths": (256, 256)}, False)],
)
def test_those_found_have_their_class_and_no_claim(
    options: dict[str, Any], has_labels: bool, make_digits: Build
) -> None:
    victim = make_digits(16, **{"widths": (256,), **options})
    network = Network.of(victim.leak)
    chain = FullyConnected.above(victim.leak, network, network.executed[0])
    equation = MaskEquation.of(chain, 0, 16)
    pairs = find_pairs(equation, chain, 0, torch.Generator().manual_seed(0))
    assert len(pairs) == 16
    answer = partial_answer(equation, pairs[:12], chain, 16)
    assert len(answer.examples) == 16
    assert Status.RECOVERED not in answer.statuses
    assert answer.statuses.count(Status.NOT_CONVERGED) == 4
    assert "12 of 16" in (answer.reason or "")
    assert (answer.labels is not None) is has_labels
    if answer.labels is None:
        return
    found = answer.labels[:12]
    off, example = (found[:, None] - victim.labels).abs().amax(2).min(1)
    assert off.max() < 0.2  # measured: 0.06
    assert (found.argmax(1) == victim.labels.argmax(1)[example]).all()
