"""CutMix and mixes of pairs: rectangles, halves, shares, and labels by them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from attacks.facts import Mixup
from defenses import LocalPlan
from defenses.base import ClientStep
from defenses.cutmix import CutMix, paste_rectangles
from defenses.vicinal import Kind, Vicinal, mix_pairs, swap_halves


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_step(rows: int, height: int = 8, width: int = 6) -> ClientStep:
    """Example i has the pixels and the class i, in units that tell all examples apart."""
    images = (torch.arange(rows) / rows).reshape(-1, 1, 1, 1).expand(rows, 2, height, width)
    return ClientStep(images.clone(), torch.eye(rows))


@pytest.mark.parametrize(
    ("share", "center", "count"),
    [(1.0, (0.5, 0.5), 0), (0.0, (0.5, 0.5), 64), (0.75, (0.5, 0.5), 16), (0.75, (0.0, 0.0), 4)],
    ids=["none", "all", "a quarter", "cut by the border"],
)
def test_rectangles(share: float, center: tuple[float, float], count: int) -> None:
    images = torch.cat([torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)])
    pasted, left = paste_rectangles(images, torch.tensor([share]), torch.tensor([center]))
    assert pasted[0].sum(dim=(1, 2)).tolist() == [count] * 3
    assert float(left) == 1 - count / 64
    rows = pasted[0, 0].any(dim=1).nonzero().flatten()
    assert count == 0 or len(rows) * int(pasted[0, 0].any(dim=0).sum()) == count  # one rectangle


def test_cutmix_labels_are_the_areas() -> None:
    step = make_step(40)
    mixed = CutMix(1.0).on_batch(step, generator())
    for i in range(20):
        share = float((mixed.images[i] == step.images[i]).double().mean())
        assert float(mixed.labels[i, i]) == pytest.approx(share, abs=1e-6)  # float32 labels
        assert float(mixed.labels[i, 20 + i]) == pytest.approx(1 - share, abs=1e-6)
        other = mixed.images[i] == step.images[20 + i]
        assert bool(((mixed.images[i] == step.images[i]) | other).all())
    assert CutMix().facts() == (Mixup(),)


def test_cutmix_areas_are_uniform_before_the_border_cuts() -> None:
    areas = [
        float(
            paste_rectangles(
                torch.cat([torch.zeros(1, 1, 64, 64), torch.ones(1, 1, 64, 64)]),
                torch.tensor([share]),
                torch.tensor([[0.5, 0.5]]),
            )[1]
        )
        for share in (0.1, 0.36, 0.84)
    ]
    # sides are whole pixels: within one of 64
    assert areas == pytest.approx([0.1, 0.36, 0.84], abs=2 / 64)


@pytest.mark.parametrize("kind", ["double-mix", "reverse"])
def test_both_mixes_hold_the_same_pair(kind: Kind) -> None:
    step = make_step(12)
    mixed = Vicinal(kind).on_batch(step, generator())
    shares = []
    for row in range(12):
        first, second = row // 2 * 2, row // 2 * 2 + 1
        m = float(mixed.labels[row, first])
        assert float(mixed.labels[row, second]) == pytest.approx(1 - m, abs=1e-6)
        expected = m * step.images[first] + (1 - m) * step.images[second]
        torch.testing.assert_close(mixed.images[row], expected, rtol=0, atol=1e-6)
        shares.append(m)
    sums = [shares[row] + shares[row + 1] for row in range(0, 12, 2)]
    is_reverse = all(math.isclose(total, 1, abs_tol=1e-6) for total in sums)
    assert is_reverse == (kind == "reverse")


@pytest.mark.parametrize("width", [6, 7])
def test_recombined_halves(width: int) -> None:
    step = make_step(4, width=width)
    mixed = Vicinal("recombine").on_batch(step, generator())
    left = width - width // 2
    for row in range(4):
        other = row ^ 1
        assert torch.equal(mixed.images[row, :, :, :left], step.images[row, :, :, :left])
        assert torch.equal(mixed.images[row, :, :, left:], step.images[other, :, :, left:])
        assert float(mixed.labels[row, row]) == pytest.approx(left / width, abs=1e-6)
    assert torch.equal(swap_halves(swap_halves(step.images)), step.images)


def test_pairs_need_an_even_batch() -> None:
    with pytest.raises(ValueError, match="pairs need an even number of examples in a batch, found"):
        Vicinal().on_batch(make_step(3), generator())


@pytest.mark.parametrize(
    ("batch", "share", "epochs", "odd"),
    [(4, 21, None, None), (3, 21, None, 3), (4, 22, 1, None), (4, 21, 1, 1)],
)
def test_odd_batches_are_refused_before_the_run(
    batch: int, share: int, epochs: int | None, odd: int | None
) -> None:
    plan = LocalPlan(local_steps=6, batch_size=batch, share_size=share, local_epochs=epochs)
    if odd is None:
        Vicinal().check(nn.Flatten(), plan)
        return
    with pytest.raises(ValueError, match=f"even number of examples in a batch, found {odd}"):
        Vicinal().check(nn.Flatten(), plan)


def test_mix_pairs_values() -> None:
    batch = torch.tensor([[0.0], [8.0], [1.0], [2.0]])
    assert mix_pairs(batch, torch.tensor([1.0, 0.0, 0.5, 0.25])).tolist() == [
        [0.0],
        [8.0],
        [1.5],
        [1.75],
    ]
