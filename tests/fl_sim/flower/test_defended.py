"""What a client's defenses change of its update, measured without the run's help."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fl_sim.federation import Federation
from fl_sim.flower.client import train_locally
from fl_sim.flower.defended import Defended, is_measured, measure_defenses
from fl_sim.flower.run import run
from fl_sim.leakage.records import read_lines
from fl_sim.scenario import Scenario
from fl_sim.silenced import without

Tiny = Callable[..., Scenario]


def received(scenario: Scenario) -> dict[str, Tensor]:
    model = Federation.of(scenario).build_model()
    return {name: part.detach() for name, part in model.named_parameters()}


def measured(scenario: Scenario) -> Defended:
    return measure_defenses(scenario, 1, 1, received(scenario))


def test_noise_is_as_loud_as_it_says(tiny: Tiny) -> None:
    """20 log10 of ‖u‖ / (σ √d): the norm of d normal draws is within a few per cent of σ √d."""
    scenario = tiny('defense=[{name="dp-noise", noise_std=0.01}]', "model.name=mlp")
    start = received(scenario)
    clear = train_locally(scenario.with_changes({"defense": []}), 1, 1, start).weights
    size = math.sqrt(sum(float((clear[n] - start[n]).square().sum()) for n in start))
    count = sum(part.numel() for part in start.values())
    found = measured(scenario)
    expected = 20 * math.log10(size / (0.01 * math.sqrt(count)))
    assert found.snr_db == pytest.approx(expected, abs=0.3)
    assert (found.unchanged, found.sent_bytes) == (None, 4 * count)


@pytest.mark.parametrize(
    ("stages", "unchanged"),
    [
        ('[{name="label-smoothing", smoothing=0.0}]', "label-smoothing"),
        ('[{name="pruning", sparsity=0.0}]', "pruning"),
        ('[{name="gradient-clipping", clipping_norm=1e6}]', "gradient-clipping"),
        ('[{name="gradient-clipping", clipping_norm=1e-3}]', None),
        ('[{name="label-smoothing", smoothing=0.0}, {name="sign"}]', "label-smoothing"),
        ('[{name="mixup"}]', None),
        ('[{name="precode"}]', None),
        ('[{name="defenses.base:Defense"}]', "defenses.base:Defense"),
    ],
)
def test_what_changes_nothing_is_named(tiny: Tiny, stages: str, unchanged: str | None) -> None:
    assert measured(tiny(f"defense={stages}", "model.name=mlp")).unchanged == unchanged


def test_dropout_is_measured_against_the_network_without_it(tiny: Tiny) -> None:
    for p, unchanged in ((0.5, None), (0.0, "dropout")):
        stage = f'defense=[{{name="dropout", p={p}}}]'
        found = measured(tiny(stage, "model.name=mlp", "client.mode=train"))
        assert found.unchanged == unchanged
        assert (found.snr_db is None) is (p == 0)


def test_pruned_entries_are_counted(tiny: Tiny) -> None:
    found = measured(tiny('defense=[{name="pruning", sparsity=0.9}]', "model.name=mlp"))
    assert found.nonzero == pytest.approx(0.1, abs=1e-3)


def test_without_its_mixing_a_client_takes_the_first_of_each_pair(tiny: Tiny) -> None:
    scenario = tiny('defense=[{name="mixup"}]', "client.batch_size=2")
    raw = Federation.of(scenario).client_batch(0, 1, 0)
    plain = Federation.of(without(scenario, 0)).training_batch(0, 1, 0)
    assert torch.equal(plain.images, raw.images[:2])
    assert torch.equal(plain.labels, raw.labels[:2])


def test_rounds_are_measured_ever_more_rarely(tiny: Tiny) -> None:
    defended = tiny('defense=[{name="sign"}]')
    assert [r for r in range(20) if is_measured(defended, r)] == [1, 2, 4, 8, 16]
    assert not is_measured(tiny("defense=[]"), 1)


def test_a_run_writes_down_what_was_measured(tiny: Tiny, tmp_path: Path) -> None:
    scenario = tiny('defense=[{name="pruning", sparsity=0.0}]', "rounds=3")
    folder = run(scenario, tmp_path / "run")
    rounds = {line["round"]: line for line in read_lines(folder / "rounds.jsonl")}
    assert [r for r, line in rounds.items() if "unchanged_by" in line] == [1, 2]
    assert rounds[2]["unchanged_by"] == "pruning"
    assert rounds[2]["update_snr_db"] is None
