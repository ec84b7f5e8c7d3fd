"""The judge of a simulation: it replays what a client trained on from the scenario's seeds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fl_sim.federation import Federation
from fl_sim.leakage.judge import Baseline, Truth


@dataclass(frozen=True, eq=False)
class ReplayJudge:
    """Replays the truth from the scenario's seeds; a `fl_sim.leakage.judge.Judge`.

    Args:
        federation: whose clients trained.
        baseline: what an attacker guesses who sees no update.
    """

    federation: Federation
    baseline: Baseline

    @classmethod
    def of(cls, federation: Federation) -> ReplayJudge:
        """Take the baseline from the test data."""
        data = federation.dataset
        baseline = Baseline.of(data.test_images, data.test_labels, classes=data.num_classes)
        return cls(federation, baseline)

    def truth(self, client: int, server_round: int) -> Truth:
        """Return what the client trained on in the round's first step."""
        batch = self.federation.training_batch(client, server_round, 0)
        return Truth(batch.images, batch.labels)

    def label_mass(self, client: int, server_round: int) -> Tensor:
        """Return the sum (K,) of the labels that the client trained on in all the round's steps."""
        steps = range(self.federation.scenario.client.local_steps)
        batches = [self.federation.training_batch(client, server_round, step) for step in steps]
        return torch.stack([batch.labels.double().sum(dim=0) for batch in batches]).sum(dim=0)
