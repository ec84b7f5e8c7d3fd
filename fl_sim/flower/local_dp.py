"""Flower's `LocalDpMod` as a defense, for `fl-sim audit-dp fl_sim.flower.local_dp:LocalDp`."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.clientapp.mod import LocalDpMod

from defenses import Defense, LocalPlan, Place, Privacy
from defenses.base import Gradients
from defenses.parameters import require_number


@dataclass(frozen=True)
class LocalDp(Defense):
    """What Flower's `LocalDpMod` sends in place of an update, and what it promises.

    Args:
        clipping_norm: C, the L2 bound on the update, above 0.
        sensitivity: Δ, of the noise, above 0; two updates clipped to C differ by up to 2C.
        epsilon: above 0; the noise's standard deviation is Δ·√(2 ln(1.25/δ))/ε.
        delta: δ, in (0, 1).

    Raises:
        ValueError: a parameter is out of its range.
    """

    clipping_norm: float
    sensitivity: float
    epsilon: float
    delta: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("clipping_norm", "sensitivity", "epsilon"):
            require_number(name, getattr(self, name), "above 0", lambda value: value > 0)
        require_number("delta", self.delta, "above 0 and below 1", lambda value: 0 < value < 1)

    def on_update(self, update: Gradients, place: Place, generator: torch.Generator) -> Gradients:
        """Send the update through the mod."""
        mod = LocalDpMod(self.clipping_norm, self.sensitivity, self.epsilon, self.delta)
        received = {name: torch.zeros_like(part) for name, part in update.items()}
        with _seeded_and_silent(generator):
            reply = mod(_message(received), cast(Any, None), lambda *_: _message(update))
        sent = next(iter(reply.content.array_records.values())).to_torch_state_dict()
        return {name: sent[name].to(part) for name, part in update.items()}

    def privacy(self, plan: LocalPlan) -> Privacy:
        """Claim the noise that the parameters make, at the sensitivity that they tell."""
        noise = self.sensitivity * math.sqrt(2 * math.log(1.25 / self.delta)) / self.epsilon
        return Privacy(sensitivity=self.sensitivity, noise=noise)


@dataclass
class _Content:
    """As much of a message as a mod reads; a message of Flower's belongs to a run."""

    content: RecordDict

    def has_error(self) -> bool:
        return False


def _message(tensors: Gradients) -> Any:
    arrays = {name: Array(part.cpu().numpy().copy()) for name, part in tensors.items()}
    return _Content(RecordDict({"arrays": ArrayRecord(arrays)}))


@contextlib.contextmanager
def _seeded_and_silent(generator: torch.Generator) -> Iterator[None]:
    """Let the mod draw from NumPy's global generator, by a seed; then put it back."""
    logger = logging.getLogger("flwr")
    level, state = logger.level, np.random.get_state()
    logger.setLevel(logging.WARNING)  # it logs two lines for each update
    np.random.seed(int(torch.randint(2**32, (), generator=generator)))
    try:
        yield
    finally:
        np.random.set_state(state)
        logger.setLevel(level)
