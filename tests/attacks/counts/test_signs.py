"""Classes of a batch counted by the signs of the last layer's gradient."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import betainc
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from attacks import GradientLeak, Status
from attacks.answers import LabelRecovery
from attacks.counts.signs import class_counts
from attacks.facts import Fact, HardLabels, LabelSmoothing, Mixup, SignsOnly
from attacks.labels.soft_label import SoftLabelRecovery
from defenses.base import Place
from defenses.label_smoothing import smooth_labels
from defenses.sign import Sign
from fl_sim.testing import build_seeded

SHAPE, CLASSES = (1, 12, 12), 10


def leak_of(
    batch: int, *facts: Fact, smoothing: float = 0.0, seed: int = 0, last: nn.Module | None = None
) -> tuple[GradientLeak, Tensor]:
    """Return the signs of a batch's gradient, to who knows that, and the classes (B,)."""
    model = build_seeded(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(144, 256), last or nn.ReLU(), nn.Linear(256, CLASSES)
        )
    )
    draws = torch.Generator().manual_seed(seed)
    images = (torch.rand(batch, *SHAPE, generator=draws) < 0.3).float()
    classes = torch.randint(CLASSES, (batch,), generator=draws)
    labels = smooth_labels(one_hot(classes, CLASSES).float(), smoothing)
    found = torch.autograd.grad(cross_entropy(model(images), labels), list(model.parameters()))
    gradients = dict(zip((n for n, _ in model.named_parameters()), found, strict=True))
    sent = Sign().on_update(gradients, Place(), draws)
    assert isinstance(sent, dict)
    return GradientLeak(model, sent, batch, SHAPE, knowledge=(SignsOnly(), *facts)), classes


def answer_of(leak: GradientLeak) -> LabelRecovery:
    return SoftLabelRecovery()(leak, generator=torch.Generator())


@pytest.mark.parametrize("κ", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("counts", [[0, 1, 3, 0, 4], [2, 2, 2, 2, 0], [8, 0, 0, 0, 0]])
def test_shares_of_a_shape_that_is_not_told_give_their_counts(counts: list[int], κ: float) -> None:
    limits, n = np.full(5, 0.2), np.array(counts)
    inside = (n > 0) & (n < 8)
    shares = (n == 8).astype(np.float64)
    shares[inside] = 1 - betainc(n[inside] * κ, (8 - n[inside]) * κ, limits[inside])
    found = class_counts(shares, limits, 8)
    assert found.counts.tolist() == counts
    assert found.off < 0.1  # κ are tried a tenth apart


@pytest.mark.parametrize("batch", [2, 8, 16])
def test_nearly_all_classes_of_a_batch_are_counted_and_none_is_claimed(batch: int) -> None:
    """Of 5 batches nine tenths, where as many guesses at random would be right as by chance."""
    right = 0
    for seed in range(5):
        leak, classes = leak_of(batch, LabelSmoothing(0.2), smoothing=0.2, seed=seed)
        answer = answer_of(leak)
        assert set(answer.statuses) == {Status.NOT_IDENTIFIABLE}
        assert answer.labels is not None
        assert torch.allclose(answer.labels.amin(dim=1), torch.tensor(0.02, dtype=torch.float64))
        found = torch.bincount(answer.labels.argmax(dim=1), minlength=CLASSES)
        right += int(torch.minimum(found, torch.bincount(classes, minlength=CLASSES)).sum())
    assert right >= 0.9 * 5 * batch


def test_signs_that_no_counts_explain_are_refused() -> None:
    leak, _ = leak_of(8, HardLabels())
    draws = torch.Generator().manual_seed(1)
    noise = {n: torch.randn(g.shape, generator=draws).sign() for n, g in leak.gradients.items()}
    answer = answer_of(dataclasses.replace(leak, gradients=noise))
    assert answer.status is Status.NOT_APPLICABLE
    assert "those of any counts" in str(answer.reason)


@pytest.mark.parametrize(
    ("changes", "fact", "sentence"),
    [
        ({"batch_size": None}, HardLabels(), "found an unknown number"),
        ({"batch_size": 300}, HardLabels(), "batches of up to 256 examples, found 300"),
        ({}, Mixup(), "labels are of one class each"),
        ({"local_steps": 2, "lr": 0.1}, HardLabels(), "2 local steps"),
    ],
    ids=["untold", "large", "mixed", "steps"],
)
def test_what_is_not_counted_is_one_sentence(
    changes: dict[str, int | None], fact: Fact, sentence: str
) -> None:
    leak, _ = leak_of(4, fact)
    assert sentence in str(answer_of(dataclasses.replace(leak, **changes)).reason)  # type: ignore[arg-type]


def test_features_of_both_signs_count_nothing() -> None:
    leak, _ = leak_of(4, HardLabels(), last=nn.Tanh())
    assert "never negative" in str(answer_of(leak).reason)
