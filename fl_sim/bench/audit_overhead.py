"""What the audit adds to a round, its attacks left out.

Interception, translation, replay of the truth, scoring and logging are measured. After ten local
steps, today's attacks answer at once that they need the gradient of one; the second row's attack
answers, at no cost, with a guess for each of the 320 examples, so that all are replayed, paired and
scored.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from attacks import ExampleLabel, GradientLeak, LabelAttack, LabelRecovery, Status
from fl_sim.bench.recorded import recorded
from fl_sim.bench.victims import INIT, initial_weights
from fl_sim.scenario import Scenario

TITLE = (
    "A round with the audit against one without: 10 clients, `lenet`, batch 32, 10 local "
    "steps, 1,000 test images, engine `local`; the attacks' own time left out"
)
NOTES = (
    "Runs with and without the audit alternate in one process; `ReplyGuard` is in both.",
    initial_weights("lenet"),
)
ROUNDS = 4
"""Rounds of a run that count; the one before doesn't."""


@dataclass(frozen=True)
class UniformGuess(LabelAttack):
    """Answer with the uniform label, at no cost."""

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Return a uniform row for each example."""
        assert leak.batch_size is not None
        label = torch.full((10,), 0.1, dtype=torch.float64)
        guess = ExampleLabel(Status.NOT_CONVERGED, "it guesses", label)
        return LabelRecovery.of([guess] * leak.batch_size)


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure; one row for each attack."""
    attacks = {
        "`soft-label`, which says that it needs one step": "soft-label",
        "a guess for each example, all scored": f"{__name__}:UniformGuess",
    }
    for described, attack in attacks.items():
        with_audit: list[float] = []
        without: list[float] = []
        for _ in range(1 if quick else 6):
            with_audit += _round_seconds([{"label": attack}], seed)
            without += _round_seconds([], seed)
        medians = statistics.median(with_audit), statistics.median(without)
        yield {
            "attack": described,
            "rounds of each": len(without),
            "seconds without": f"{medians[1]:.3f}",
            "with": f"{medians[0]:.3f}",
            "ratio of medians": f"{medians[0] / medians[1]:.3f}",
            "ratio of least": f"{min(with_audit) / min(without):.3f}",
        }


def _round_seconds(attacks: list[dict[str, str]], seed: int) -> list[float]:
    """Run once and return the seconds of all rounds but the first."""
    scenario = Scenario.parse(
        {
            "seed": seed,
            "rounds": ROUNDS + 1,
            "model": {"name": "lenet", "init": INIT["lenet"]},
            "client": {"batch_size": 32, "local_steps": 10},
            "attack": attacks,
        }
    )
    return [line["seconds"] for line in recorded(scenario).rounds if line["round"] > 1]
