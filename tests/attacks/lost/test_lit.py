"""Lost pixels that are lighter than black are found by what else was sent, or not at all."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from attacks.lost.lit import Rows, with_lit
from attacks.victim.gradients import Layer
from defenses.label_smoothing import smooth_labels
from fl_sim.bench.victims import dataset
from fl_sim.models.layers import Normalize
from fl_sim.testing import build_seeded, leak_of

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz import Case
from test_completed import attack, pruned
from test_false_claims import claims_of

BATCH, CLASSES = 16, 10


def network(mean: tuple[float, ...], std: tuple[float, ...], hidden: tuple[int, ...]) -> nn.Module:
    """Return linear layers without biases on digits."""
    widths = (784, *hidden, CLASSES)
    layers: list[nn.Module] = [Normalize(mean, std), nn.Flatten()]
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("hidden", "sparsity"), [((512,), 0.8), ((512, 512), 0.9)], ids=["one hidden", "two hidden"]
)
def test_digits_come_through_where_most_columns_are_lost(
    hidden: tuple[int, ...], sparsity: float, seed: int
) -> None:
    data = dataset("mnist-5k")
    draws = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(data.images), generator=draws)[:BATCH]
    images = data.images[chosen].float()
    one_hot = nn.functional.one_hot(data.labels[chosen].long(), CLASSES)
    labels = smooth_labels(one_hot.double(), 0.1)
    model = build_seeded(lambda: network(data.mean, data.std, hidden), seed=seed)
    leak = pruned(leak_of(model, images, labels, sent_as="update"), sparsity)
    # all of it follows from pixels and labels: what was sent is more than five times as many
    entries = sum(int(part.count_nonzero()) for part in leak.gradients.values())
    assert entries > 5 * BATCH * (784 + CLASSES)
    case = Case(leak, images, labels, "none")
    recovery, found = attack(leak)
    off = (recovery.labels[:, None] - labels).abs().amax(2).min(dim=1).values
    assert float(off.max()) < 1e-2
    apart = (found.images.double()[:, None] - images.double()).flatten(2).square().mean(2)
    assert float(-10 * apart.min(dim=1).values.log10().min()) > 80  # measured: 95 to 123
    for answer in (recovery, found):
        claimed, false = claims_of(answer, case)
        assert claimed >= 8  # measured: 11 to 16; rounding leaves the others' scale open
        assert not false


def batch_of(lit: int, seed: int = 0) -> dict[str, object]:
    """Return what `with_lit` takes, of 3 images of 60 pixels, the last 30 lost, and the truth."""
    draws = np.random.default_rng(seed)
    count, n, m, above = 3, 60, 80, 12
    weight = draws.standard_normal((m, n))
    black = np.full((count, n), -0.4)
    truth = black.copy()
    truth[:, :30] += draws.uniform(0, 3, (count, 30))
    for row in truth:
        row[draws.choice(np.arange(30, n), lit, replace=False)] += draws.uniform(0.1, 3, lit)
    on = truth @ weight.T > 0
    delta = np.where(on, draws.standard_normal((count, m)), 0.0)
    over = draws.standard_normal((count, above))
    outputs = np.where(on, truth @ weight.T, 0.0)
    core = np.arange(n) < 30
    empty = np.zeros_like(weight)
    sent = np.tile(core, (m, 1))
    return {
        "layer": Layer("1", weight, empty, empty, has_bias=False, eps=1e-7, is_coarse=False),
        "own": Rows(delta, delta.T @ truth, sent, 1e-9),
        "above": Rows(over, over.T @ outputs, np.ones((above, m), dtype=bool), 1e-9),
        "units": np.ones(m, dtype=bool),
        "on": on,
        "start": np.where(core, truth, black),
        "core": core,
        "truth": truth,
    }


def test_lit_pixels_of_columns_without_any_entry_are_found_by_outputs() -> None:
    given = batch_of(lit=4)
    truth = given.pop("truth")
    result = with_lit(**given)  # type: ignore[arg-type]
    assert result is not None
    np.testing.assert_allclose(result[0], truth, atol=1e-5)  # outputs count as known to 1e-6


@pytest.mark.parametrize("change", ["outputs", "darker", "all lit"])
def test_nothing_is_found_that_doesnt_meet_the_outputs(change: str) -> None:
    given = batch_of(lit=30 if change == "all lit" else 4)
    truth = given.pop("truth")
    rows, layer = given["above"], given["layer"]
    assert isinstance(rows, Rows)
    assert isinstance(layer, Layer)
    if change == "outputs":  # of other images
        other = batch_of(lit=4, seed=1)["above"]
        assert isinstance(other, Rows)
        given["above"] = Rows(rows.delta, other.gradient, rows.sent, rows.std)
    elif change == "darker":  # than black
        assert isinstance(truth, np.ndarray)
        truth[:, -2:] -= 1.0
        outputs = np.where(given["on"], truth @ layer.weight.T, 0.0)
        given["above"] = Rows(rows.delta, rows.delta.T @ outputs, rows.sent, rows.std)
    assert with_lit(**given) is None  # type: ignore[arg-type]
