"""The judge: what a true label is called, which row is compared with which example, the scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import ExampleLabel, GradientLeak, LabelRecovery, Status
from attacks.answers import Augmentation
from fl_sim.leakage.judge import (
    Baseline,
    Truth,
    describe_label,
    describe_labels,
    pair_examples,
    score_labels,
    score_mass,
)
from fl_sim.leakage.true_features import TrueFeatures

NAN = float("nan")
SMOOTHED = (0.925, 0.025, 0.025, 0.025)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ((0, 1, 0, 0), ("hard", 0, None)),
        (SMOOTHED, ("label-smoothing", 0.1, None)),
        ((0.25, 0.25, 0.25, 0.25), ("label-smoothing", 1, None)),
        ((0, 0.3, 0, 0.7), ("mixup", 0, 0.7)),
        ((0, 0.5, 0, 0.5), ("mixup", 0, 0.5)),
        ((0.025, 0.295, 0.025, 0.655), ("mixup+label-smoothing", 0.1, 0.7)),
        ((0, 0.9999, 0.0001, 0), ("mixup", 0, 0.9999)),
        ((1 - 3e-5, 1e-5, 1e-5, 1e-5), ("label-smoothing", 4e-5, None)),
        ((1 - 3e-9, 1e-9, 1e-9, 1e-9), ("hard", 0, None)),  # less than float32 can tell
        ((1, 0), ("hard", 0, None)),
        ((0.3, 0.7), ("mixup", 0, 0.7)),  # or smoothed: with two classes nobody can tell
    ],
)
def test_a_label_says_how_it_was_augmented(
    label: tuple[float, ...], expected: tuple[str, float, float | None]
) -> None:
    kind, smoothing, mixing = expected
    for dtype in (torch.float64, torch.float32):
        found = describe_label(torch.tensor(label, dtype=dtype))
        assert found.type == kind
        # Float32 labels, and for ε four times one of them.
        assert found.smoothing == pytest.approx(smoothing, abs=3e-7)
        assert found.mixing == (None if mixing is None else pytest.approx(mixing, abs=3e-7))


def test_labels_are_described_row_by_row() -> None:
    rows = torch.tensor([SMOOTHED, (0, 1, 0, 0), (0, 0.25, 0, 0.75)])
    assert describe_labels(rows) == [describe_label(row) for row in rows]


def truth_of(labels: Tensor) -> Truth:
    generator = torch.Generator().manual_seed(0)
    return Truth(torch.rand(len(labels), 1, 4, 4, generator=generator), labels)


NOTHING = LabelRecovery(Status.NOT_CONVERGED, "for a test")


def recovery_of(labels: Tensor, **fields: Any) -> LabelRecovery:
    """Return a recovery of rows, of which those of NaN aren't recovered."""
    return LabelRecovery.of(
        [
            ExampleLabel(
                Status.NOT_CONVERGED,
                "for a test",
                row if row.isfinite().all() else None,
                **{name: column[index] for name, column in fields.items()},
            )
            for index, row in enumerate(labels.double())
        ]
    )


def test_rows_are_paired_so_that_the_total_distance_is_least() -> None:
    truth = truth_of(torch.eye(4))
    order = [2, 0, 3, 1]
    assert pair_examples(recovery_of(torch.eye(4)[order]), truth, 4) == order
    # Row 0 is nearest to example 0, but so is row 1, which has no other choice.
    rows = torch.tensor([[0.6, 0.4, 0, 0], [1, 0, 0, 0]])
    assert pair_examples(recovery_of(rows), truth_of(torch.eye(4)[:2]), 2) == [1, 0]


def test_rows_and_examples_need_not_be_equally_many() -> None:
    truth = truth_of(torch.eye(4)[[3, 1, 0]])
    # The second row fits none: the third and the fourth are nearer.
    rows = torch.tensor([[0, 0, 0, 1.0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]])
    assert pair_examples(recovery_of(rows), truth, 4) == [0, None, 2, 1]
    rows[2] = NAN
    assert pair_examples(recovery_of(rows), truth, 4) == [0, 2, None, 1]
    assert pair_examples(recovery_of(rows[3:]), truth, 1) == [1]
    assert pair_examples(NOTHING, truth, 4) == [0, 1, 2, None]
    assert pair_examples(NOTHING, truth, 1, truth.images[2:]) == [2]


@pytest.mark.parametrize("missing", [(0,), (1, 3), (0, 1, 2, 3)])
def test_rows_that_were_not_recovered_take_what_is_left(missing: tuple[int, ...]) -> None:
    order = [2, 0, 3, 1]
    rows = torch.eye(4)[order]
    rows[list(missing)] = NAN
    pairs = pair_examples(recovery_of(rows), truth_of(torch.eye(4)), 4)
    assert {*pairs} == {0, 1, 2, 3}
    assert all(pairs[row] == order[row] for row in range(4) if row not in missing)


def test_without_labels_rows_stay_in_order() -> None:
    assert pair_examples(NOTHING, truth_of(torch.eye(3)), 3) == [0, 1, 2]


def test_without_labels_rows_are_paired_by_their_images() -> None:
    truth = truth_of(torch.eye(4))
    order = [2, 0, 3, 1]
    assert pair_examples(NOTHING, truth, 4, truth.images[order]) == order
    images = truth.images[order].double()
    images[1] = NAN
    assert pair_examples(NOTHING, truth, 4, images) == order
    rows = torch.eye(4)[order]
    rows[[0, 2]] = NAN
    assert pair_examples(recovery_of(rows), truth, 4, truth.images[order]) == order


def test_examples_with_one_label_are_told_apart_by_their_images() -> None:
    labels = torch.tensor([SMOOTHED, (0, 1, 0, 0), SMOOTHED, SMOOTHED])
    truth = truth_of(labels)
    order = [3, 0, 1, 2]
    noise = 1e-6 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    found = recovery_of(labels[order] + noise)
    assert pair_examples(found, truth, 4, truth.images[order]) == order
    # An image doesn't overrule a label.
    assert pair_examples(recovery_of(torch.eye(4)), truth_of(torch.eye(4)), 4, truth.images) == [
        0,
        1,
        2,
        3,
    ]


class Head(nn.Module):
    """A network whose last layer's inputs are twice the pixels."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            self.head = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 4)."""
        logits: Tensor = self.head(2 * images.flatten(1))
        return logits


def scores_of(recovery: LabelRecovery, truth: Truth, pairs: list[int]) -> list[dict[str, Any]]:
    leak = GradientLeak(Head(), {}, len(pairs), (1, 4, 4))
    return score_labels(recovery, truth, pairs, TrueFeatures(leak))


def test_scores_compare_each_row_with_its_example() -> None:
    labels = torch.tensor([(0.2, 0.8, 0, 0), SMOOTHED, (0, 0, 1, 0)])
    truth = truth_of(labels)
    rows = torch.tensor([SMOOTHED, (0.5, 0.3, 0.1, 0.1), (NAN,) * 4]).double()
    features = 2 * truth.images.flatten(1).double()[[1, 0, 2]]
    features[1] *= 1.25
    found = (Augmentation("label-smoothing", 0.25), Augmentation("mixup", 0.05, 0.75), None)
    recovery = recovery_of(rows, feature=[*features[:2], None], augmentation=found)
    first, second, third = scores_of(recovery, truth, [1, 0, 2])
    # Float32 labels throughout.
    assert first == {
        "true_augmentation": "label-smoothing",
        "true_labels": 1,
        "label_linf": pytest.approx(0, abs=1e-7),
        "label_l1": pytest.approx(0, abs=1e-7),
        "label_top1": True,
        "smoothing_error": pytest.approx(0.15, abs=1e-6),
        "feature_error": pytest.approx(0, abs=1e-7),
    }
    assert second == {
        "true_augmentation": "mixup",
        "true_labels": 1,
        "label_linf": pytest.approx(0.5, abs=1e-7),
        "label_l1": pytest.approx(0.3 + 0.5 + 0.1 + 0.1, abs=1e-6),
        "label_top1": False,
        "smoothing_error": pytest.approx(0.05, abs=1e-6),
        "mixing_error": pytest.approx(0.05, abs=1e-6),
        "feature_error": pytest.approx(0.25, abs=1e-6),
    }
    assert third == {"true_augmentation": "hard", "true_labels": 1}


def test_a_missing_mixing_is_no_error_of_it() -> None:
    recovery = recovery_of(torch.eye(4)[:1], augmentation=(Augmentation("hard"),))
    [scores] = scores_of(recovery, truth_of(torch.tensor([[0.75, 0.25, 0, 0]])), [0])
    assert "mixing_error" not in scores
    assert scores["smoothing_error"] == 0


@pytest.mark.parametrize(
    ("mass", "true", "expected"),
    [
        ([2.0, 2.0], [2.0, 2.0], (0.0, 1.0)),
        ([4.0, 0.0], [0.0, 4.0], (1.0, 0.0)),
        ([2.6, 1.4], [2.0, 2.0], (0.15, 0.75)),
        ([1.4, 2.6], [1.2, 2.8], (0.05, 1.0)),
        ([0.5, 0.5], [2.0, 2.0], (0.0, None)),
    ],
)
def test_a_mass_is_scored_beside_chance(
    mass: list[float], true: list[float], expected: tuple[float, float | None]
) -> None:
    """The last attacker doesn't know how many examples there are, and can't round."""
    chance = torch.tensor([1.0, 0.0])
    scores = score_mass(torch.tensor(mass), torch.tensor(true), chance)
    distance, share = expected
    assert scores["mass_tv"] == pytest.approx(distance)
    assert scores.get("mass_irec") == (None if share is None else pytest.approx(share))
    assert scores["mass_tv_chance"] == pytest.approx(true[1] / 4)
    if share is not None:
        assert scores["mass_irec_chance"] == pytest.approx(round(true[0]) / 4)


def test_baselines_are_the_mean_image_and_that_of_the_class() -> None:
    true_image = torch.full((1, 2, 2), 0.5)
    classes = torch.stack([torch.full((1, 2, 2), value) for value in (0.6, 0.51, NAN)])
    baseline = Baseline(torch.full((1, 2, 2), 0.4), 0, torch.tensor([0.5, 0.5]), classes)
    found = baseline.scores(true_image, torch.tensor([0.1, 0.8, 0.1]))
    assert found == {
        "baseline_psnr_db": pytest.approx(20, abs=1e-4),  # 0.1 off, float32 pixels
        "baseline_class_psnr_db": pytest.approx(40, abs=1e-3),
    }
    # A class without test images has no mean.
    assert baseline.scores(true_image, torch.eye(3)[2]).keys() == {"baseline_psnr_db"}
    unknown = Baseline(baseline.image, 0, baseline.mass)
    assert unknown.scores(true_image, torch.eye(3)[1]).keys() == {"baseline_psnr_db"}
