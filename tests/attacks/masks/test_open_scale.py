"""What is said where nothing gives a scale: everything but the scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks import LabelRecovery, Reconstruction, Status
from attacks.dense.inputs import OPEN_IMAGE
from attacks.images.analytic import AnalyticInversion
from attacks.labels.soft_label import SoftLabelRecovery
from attacks.one_example.verdict import OPEN_FEATURE

Build = Callable[..., Any]


def answers(victim: Any) -> tuple[LabelRecovery, Reconstruction]:
    draws = torch.Generator().manual_seed(0)
    labels = SoftLabelRecovery()(victim.leak, generator=draws)
    return labels, AnalyticInversion()(victim.leak, labels, generator=draws)


def features_of(victim: Any) -> Tensor:
    found: Tensor = victim.model[:-1](victim.images).detach().double()
    return found


def psnr_db(images: Tensor | None, truth: Tensor) -> Tensor:
    assert images is not None
    error = (images[:, None] - truth.double()).square().flatten(2).mean(dim=2)
    return -10 * error[linear_sum_assignment(error.numpy())].log10()


@pytest.mark.parametrize("size", [1, 8])
def test_directions_are_exact_where_no_label_is(size: int, make_digits: Build) -> None:
    """Two classes without a bias: a label is one number, and so is its example's scale."""
    victim = make_digits(size, widths=(128,), classes=2, bias=False, kind="mixup")
    labels, images = answers(victim)
    truth = features_of(victim)
    assert labels.labels is None
    assert labels.features is not None
    assert labels.features.norm(dim=1).allclose(torch.ones(size).double())
    away = (labels.features[:, None] - truth / truth.norm(dim=1, keepdim=True)).norm(dim=2)
    assert away[linear_sum_assignment(away.numpy())].max() < 1e-4  # measured: 6e-5; −x is 2 away
    for example in labels.examples:
        assert example.status is Status.NOT_IDENTIFIABLE
        assert OPEN_FEATURE in (example.reason or "")
    assert {image.status for image in images.examples} == {Status.NOT_IDENTIFIABLE}
    assert {image.reason for image in images.examples} == {OPEN_IMAGE}
    # Digits stand on black, so that the largest scale is theirs.
    assert psnr_db(images.images, victim.images).min() > 80  # measured: 94


def test_an_image_without_black_or_white_is_right_but_for_its_scale(make_digits: Build) -> None:
    draws = torch.Generator().manual_seed(0)
    image = 0.3 + 0.3 * torch.rand(1, 1, 28, 28, generator=draws)
    victim = make_digits(1, images=image, widths=(64,), classes=2, bias=False, kind="mixup")
    _, found = answers(victim)
    assert found.status is Status.NOT_IDENTIFIABLE
    assert found.images is not None
    shown = found.images[0]
    assert min(float(shown.min()), 1 - float(shown.max())) < 1e-6  # no larger one fits
    parts = [part.flatten() - 0.13 for part in (shown, image[0].double())]  # as the model takes it
    assert torch.nn.functional.cosine_similarity(*parts, dim=0) > 1 - 1e-9
    assert psnr_db(found.images, victim.images)[0] < 30


def test_a_bias_gives_the_feature_though_not_the_label(make_digits: Build) -> None:
    victim = make_digits(1, widths=(64,), classes=2, kind="mixup")
    labels, images = answers(victim)
    assert labels.status is Status.NOT_IDENTIFIABLE
    assert OPEN_FEATURE not in (labels.reason or "")
    assert labels.features is not None
    truth = features_of(victim)
    assert (labels.features - truth).norm() / truth.norm() < 1e-4  # measured: 1e-6
    assert images.status is Status.RECOVERED
