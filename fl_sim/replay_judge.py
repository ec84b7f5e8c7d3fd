"""The judge of a simulation: it replays what a client trained on from the scenario's seeds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from defenses import ClientStep
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
        """Return what the client trained on in the round, each example once.

        Images that are alike are one example, unless one pass over the share holds both: then they
        are two that are alike. What a defense mixes anew is another example every time.
        """
        found: dict[tuple[bytes, int], tuple[Tensor, list[Tensor], Tensor]] = {}
        draws = self.federation.defenses.draws
        epoch, times = -1, Counter[bytes]()
        for step, batch in enumerate(self._batches(client, server_round)):
            raw = self.federation.client_batch(client, server_round, step).images
            # The first ones, then all their partners.
            originals = raw.reshape(draws, -1, *raw.shape[1:]).transpose(0, 1)
            if self.federation.epoch_of(client, step) != epoch:
                epoch, times = self.federation.epoch_of(client, step), Counter()
            for image, label, mixed in zip(batch.images, batch.labels, originals, strict=True):
                pixels = hashlib.sha256(image.numpy().tobytes()).digest()
                _, labels, _ = found.setdefault((pixels, times[pixels]), (image, [], mixed))
                times[pixels] += 1
                if not any(torch.equal(label, other) for other in labels):
                    labels.append(label)
        examples = list(found.values())
        if not examples:  # drawn one by one, none was drawn
            none = self.federation.client_batch(client, server_round, 0)
            return Truth(none.images[:0], none.labels[:0])
        vary = any(len(labels) > 1 for _, labels, _ in examples)
        return Truth(
            torch.stack([image for image, _, _ in examples]),
            torch.stack([labels[0] for _, labels, _ in examples]),
            tuple(torch.stack(labels) for _, labels, _ in examples) if vary else None,
            tuple(mixed for _, _, mixed in examples) if draws > 1 else None,
        )

    def label_mass(self, client: int, server_round: int) -> Tensor:
        """Return the sum (K,) of the labels that the client trained on in all the round's steps."""
        sums = [b.labels.double().sum(dim=0) for b in self._batches(client, server_round)]
        return torch.stack(sums).sum(dim=0)

    def _batches(self, client: int, server_round: int) -> Iterator[ClientStep]:
        for step in range(self.federation.local_steps(client)):
            yield self.federation.training_batch(client, server_round, step)
