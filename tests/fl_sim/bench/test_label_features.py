"""Which property of the label selects λ: ties do, the sum rule doesn't."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from fl_sim.bench.label_features import (
    FEATURES,
    GRID,
    SEARCHES,
    SPARED,
    Array,
    Problem,
    objective_of,
    rows,
)
from fl_sim.bench.victims import dataset, draw_batch, untrained
from fl_sim.testing import leak_of

COUNT = 4


def victims(augmentation: str) -> list[tuple[Problem, Array]]:
    data = dataset("mnist-5k")
    model = untrained("lenet", data)
    images, labels = draw_batch(data, COUNT, augmentation, seed=1)
    return [
        (Problem.of(leak_of(model, image[None], label[None])), label.double().numpy())
        for image, label in zip(images, labels, strict=True)
    ]


def errors_of(search: str, feature: str, augmentation: str) -> list[float]:
    found = []
    for problem, truth in victims(augmentation):
        objective = objective_of(problem, feature, augmentation)
        scale = SEARCHES[search](objective, torch.Generator().manual_seed(0))
        found.append(float(np.abs(problem.labels(np.array(scale)) - truth).max()))
    return found


@pytest.mark.parametrize("augmentation", SPARED)
def test_the_sum_rule_is_kept_by_every_scale(augmentation: str) -> None:
    """The paper's necessary condition: no λ breaks the rule by more than rounding does."""
    for problem, truth in victims(augmentation):
        scales = np.concatenate([GRID, -GRID])
        assert objective_of(problem, "sum rule", augmentation)(scales).max() < 1e-13
        labels = problem.labels(scales)
        assert np.abs(labels - truth).max(axis=1).max() > 0.5  # and yet the labels are others
        ties = objective_of(problem, "scaled variance", augmentation)
        root = SEARCHES["grid and zoom"](ties, torch.Generator())
        assert ties(np.array(root)) < 1e-9 * ties(scales).max()  # float32 leaves about 1e-12


@pytest.mark.parametrize("augmentation", SPARED)
@pytest.mark.parametrize("search", SEARCHES)
def test_no_search_finds_the_label_by_the_sum_rule(search: str, augmentation: str) -> None:
    errors = errors_of(search, "sum rule", augmentation)
    assert min(errors) > 1e-2  # measured: 0.02 to 1


@pytest.mark.parametrize("augmentation", SPARED)
@pytest.mark.parametrize("search", ["grid and zoom", "grid and Brent", "grid and bisection"])
@pytest.mark.parametrize("feature", ["variance (paper)", "scaled variance", "scaled range"])
def test_ties_select_the_label(feature: str, search: str, augmentation: str) -> None:
    assert max(errors_of(search, feature, augmentation)) < 1e-3  # float32 leaves about 1e-6


def test_a_row_for_each_feature_and_search() -> None:
    found = list(islice(rows(quick=True, seed=0), len(SEARCHES)))
    assert [row["search"] for row in found] == list(SEARCHES)
    for row in found:
        assert row["feature"] == next(iter(FEATURES))
        assert (row["network"], row["K"]) == ("untrained lenet", 10)
        shares = [row[key] for key in ("L∞ < 1e-2", "false optimum", "missed")]
        assert sum(float(str(share)) for share in shares) == pytest.approx(1, abs=2e-3)
