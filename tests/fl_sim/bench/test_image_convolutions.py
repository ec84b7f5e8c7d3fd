"""The benchmark of `r-gap`: its rows, and the networks that it brings along."""

from __future__ import annotations

import torch

from fl_sim.bench.image_convolutions import narrow_convnet, rows


def test_rows_are_flat_and_count_claims() -> None:
    row = next(rows(quick=True, seed=0))
    assert row["network"] == "lenet"
    assert row["images"] == 3
    assert row["rule"] == "yes"
    assert row["called recovered"] == 3
    assert row["of these below 50 dB"] == 0
    assert all(isinstance(value, str | int | float) for value in row.values())


def test_narrow_networks_are_seeded_and_draw_nothing_global() -> None:
    before = torch.get_rng_state()
    first, second = (narrow_convnet(8, 4, seed=3)(torch.zeros(1, 3, 32, 32)) for _ in range(2))
    assert first.equal(second)
    assert first.shape == (1, 10)
    assert before.equal(torch.get_rng_state())
