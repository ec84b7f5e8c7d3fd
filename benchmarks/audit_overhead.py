"""What the audit adds to a round, its attacks left out.

Interception, translation, replay of the truth, scoring and logging are measured. After ten local
steps, today's attacks answer at once that they need the gradient of one; the second row's attack
answers, at no cost, with a guess for each of the 320 examples, so that all are replayed, paired and
scored. Runs with and without the audit alternate in one process; `ReplyGuard` is in both.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from attacks import GradientLeak, LabelAttack, LabelRecovery, Status
from fl_sim.bench.table import write_table
from fl_sim.records import read_lines
from fl_sim.scenario import Scenario
from fl_sim.simulation import run

PAIRS, ROUNDS = 6, 4
COMMAND = "python -m benchmarks audit_overhead"


@dataclass(frozen=True)
class UniformGuess(LabelAttack):
    """Answer with the uniform label, at no cost."""

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Return a uniform row for each example."""
        assert leak.batch_size is not None
        labels = torch.full((leak.batch_size, 10), 0.1, dtype=torch.float64)
        return LabelRecovery(
            Status.NOT_CONVERGED,
            "it guesses",
            labels=labels,
            statuses=(Status.NOT_CONVERGED,) * leak.batch_size,
        )


def main() -> str:
    """Measure, and return the table."""
    attacks = {
        "`soft-label`, which says that it needs one step": "soft-label",
        "a guess for each example, all scored": f"{__name__}:UniformGuess",
    }
    rows = []
    for described, attack in attacks.items():
        with_audit: list[float] = []
        without: list[float] = []
        for _ in range(PAIRS):
            with_audit += _round_seconds(attacks=[{"label": attack}])
            without += _round_seconds(attacks=[])
        ratios = [a / b for a, b in zip(with_audit, without, strict=True)]
        medians = statistics.median(with_audit), statistics.median(without)
        rows.append(
            {
                "attack": described,
                "rounds of each": len(ratios),
                "seconds without": f"{medians[1]:.3f}",
                "with": f"{medians[0]:.3f}",
                "ratio of medians": f"{medians[0] / medians[1]:.3f}",
                "ratio of least": f"{min(with_audit) / min(without):.3f}",
            }
        )
    title = (
        "A round with the audit against one without: 10 clients, `lenet`, batch 32, 10 local "
        "steps, 1,000 test images, engine `local`; the attacks' own time left out"
    )
    return write_table("audit_overhead", title, COMMAND, 0, rows)


def _round_seconds(attacks: list[dict[str, str]]) -> list[float]:
    """Run once and return the seconds of all rounds but the first."""
    scenario = Scenario.parse(
        {
            "rounds": ROUNDS + 1,
            "model": {"name": "lenet"},
            "client": {"batch_size": 32, "local_steps": 10},
            "attack": attacks,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        run(scenario, Path(folder) / "run")
        lines = read_lines(Path(folder) / "run" / "rounds.jsonl")
    return [line["seconds"] for line in lines if line["round"] > 1]
