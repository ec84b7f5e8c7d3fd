"""The benchmarks of gradient matching: their rows, and what they share."""

from __future__ import annotations

import torch

from attacks import ExampleImage, Reconstruction, Status
from fl_sim.bench.image_matching import figure, rows
from fl_sim.bench.matching import difference, interval_of, pair_images, psnrs, score_columns


def test_rows_are_flat_and_paired() -> None:
    found = []
    for row in rows(quick=True, seed=0):
        found.append(row)
        if row["setting"] == "IG, free label":
            break
    assert [row["setting"] for row in found] == [
        f"IG, {kind} label" for kind in ("true", "recovered", "hard", "free")
    ]
    assert all(row.keys() == found[0].keys() for row in found)
    assert all(isinstance(value, str | int | float) for row in found for value in row.values())
    assert [row["labels known"] for row in found] == [4, 4, 4, 0]


def test_intervals_are_students() -> None:
    text = difference([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    assert text == "+1.00 (-1.48 to +3.48)"  # 1 ± 4.303 / √3
    assert interval_of(text) == (1.0, -1.48, 3.48)
    assert interval_of(difference([1.0], [2.0])) == (-1.0, -1.0, -1.0)


def test_the_figure_has_a_line_for_each_network_and_noise() -> None:
    rows = [
        {
            "question": "feature",
            "network": network,
            "setting": f"weight {weight}, noise {noise}",
            "difference": f"+{10 * weight:.2f} (-1.00 to +20.00)" if weight else "",
        }
        for network in ("convnet", "lenet")
        for noise in (0.01, 0.1)
        for weight in (0, 0.1, 1)
    ]
    [axes] = figure(rows).axes
    bars = {bar.get_label(): bar for bar in axes.containers}
    assert list(bars) == [f"{n}, noise {v}" for n in ("convnet", "lenet") for v in (0.01, 0.1)]
    assert bars["lenet, noise 0.1"].lines[0].get_xydata().tolist() == [[0.1, 1.0], [1.0, 10.0]]


def answer(*images: torch.Tensor | None) -> Reconstruction:
    return Reconstruction.of(
        [ExampleImage(Status.NOT_CONVERGED, "none", image) for image in images],
        gradient_evaluations=1,
    )


def test_images_are_paired_with_the_nearest_ones_and_a_missing_one_counts_as_failed() -> None:
    draws = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 3, 32, 32, generator=draws)
    swapped = answer(truth[2].double(), None, truth[0].double())
    paired = pair_images(swapped, truth)
    assert paired is not None
    assert torch.equal(paired[0], truth[0].double()) and torch.equal(paired[2], truth[2].double())
    assert psnrs([swapped, answer(None)], [truth, truth[:1]]) == [200.0, 0.0, 200.0, 0.0]


def test_what_was_found_is_counted_among_all() -> None:
    truth = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    counted = score_columns([answer(truth[0].double()), answer(None)], [truth, truth])
    assert counted["found"] == counted["above 30 dB"] == "1 of 2"
    assert counted["called recovered"] == 0
