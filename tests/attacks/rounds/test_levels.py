"""Updates that were rounded to levels, and who knows it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from attacks import GradientLeak, Normalization, Status
from attacks.facts import GaussianMechanism, HardLabels, LabelSmoothing, Quantized
from attacks.images.analytic import AnalyticInversion
from attacks.labels.soft_label import SoftLabelRecovery
from attacks.rounds.columns import Box, by_columns
from attacks.rounds.levels import spacing, variance_about, variance_at
from attacks.types import NotApplicable
from defenses.base import Place
from defenses.quantization import Quantization, quantize
from fl_sim.testing import build_seeded

LR, SHAPE, SMOOTHING = 0.1, (1, 12, 12), 0.1


def rounded(
    levels: int, examples: int, *, seed: int = 0, bias: bool = False
) -> tuple[GradientLeak, Tensor, Tensor]:
    """Return what an attacker who knows sees of one step on images that are mostly black."""
    model = build_seeded(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(144, 128, bias=bias), nn.ReLU(), nn.Linear(128, 10, bias=bias)
        )
    )
    draws = torch.Generator().manual_seed(seed)
    images = torch.rand(examples, *SHAPE, generator=draws)
    images = images * (torch.rand(images.shape, generator=draws) < 0.3)
    classes = torch.randint(10, (examples,), generator=draws)
    labels = (1 - SMOOTHING) * one_hot(classes, 10).float() + SMOOTHING / 10
    loss = cross_entropy(model(images), labels)
    names = [name for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    update = {name: LR * g for name, g in zip(names, gradients, strict=True)}
    sent = Quantization(levels).on_update(update, Place(1), draws)
    assert isinstance(sent, dict)
    came = {}
    for name, weight in model.named_parameters():
        start = weight.detach()
        came[name] = (start.double() - (start - sent[name]).double()) / LR
    leak = GradientLeak(
        model,
        came,
        examples,
        SHAPE,
        lr=LR,
        update_dtype=torch.float32,
        examples=examples,
        knowledge=(Quantized(levels), LabelSmoothing(SMOOTHING)),
        normalization=Normalization.of_range(0, 1),
    )
    return leak, images, labels


def errors_of(leak: GradientLeak, images: Tensor, labels: Tensor) -> tuple[list[float], int, int]:
    """Return the images' root mean square errors, and how many labels are claimed, and wrong."""
    recovery = SoftLabelRecovery()(leak, generator=torch.Generator())
    found = AnalyticInversion()(leak, recovery, generator=torch.Generator())
    away = torch.full((len(images), len(images)), 1.0)
    if found.images is not None:
        away = (
            (found.images[:, None] - images).square().flatten(2).mean(dim=2).sqrt().nan_to_num(1.0)
        )
    rows, columns = linear_sum_assignment(away.numpy())
    claimed = wrong = 0
    for example in recovery.examples:
        if example.status is Status.RECOVERED and example.label is not None:
            claimed += 1
            wrong += not ((example.label - labels).abs().amax(dim=1) < 1e-2).any()
    return [float(away[i, j]) for i, j in zip(rows, columns, strict=True)], claimed, wrong


@pytest.mark.parametrize("levels", [4, 256, 4096])
@pytest.mark.parametrize("size", [10, 4000])
def test_the_spacing_is_read_off_the_entries(levels: int, size: int) -> None:
    draws = torch.Generator().manual_seed(levels)
    part = torch.randn(size, generator=draws, dtype=torch.float64)
    sent = quantize(part, levels, torch.rand(size, generator=draws, dtype=torch.float64)).numpy()
    rounding = np.full(size, 1e-9)
    sent = sent + rounding * draws_of(size)
    assert spacing(sent, rounding, levels) == pytest.approx(float(part.norm()) / levels, rel=1e-6)


def draws_of(size: int) -> np.ndarray:
    """Return normal numbers."""
    return np.random.default_rng(0).standard_normal(size)


def test_entries_between_the_levels_have_no_spacing() -> None:
    assert spacing(draws_of(4000), np.full(4000, 1e-9), 256) is None
    assert spacing(np.zeros(10), np.full(10, 1e-9), 256) is None


def test_variances_are_those_of_rounding_at_random() -> None:
    """20,164 draws tell a variance within 1 %, of which four times are allowed."""
    v = torch.tensor([0.0, 0.3, 2.5, 7.9], dtype=torch.float64)
    draws = torch.Generator().manual_seed(0)
    count = 142  # that many copies squared are of that many times the norm
    uniform = torch.rand(count**2, 4, generator=draws, dtype=torch.float64)
    many = quantize(v.expand(count**2, 4), 16 * count, uniform)
    expected = variance_at(float(v.norm()) / 16, v.numpy())
    assert many.var(dim=0).numpy() == pytest.approx(expected, rel=0.04, abs=1e-12)
    sizes = np.random.default_rng(0).exponential(0.4, 200_000)
    assert variance_about(1.0, np.array([0.4])) == pytest.approx(
        variance_at(1.0, sizes).mean(), rel=0.01
    )


def test_columns_are_least_squares_within_the_box() -> None:
    """Against the unconstrained answer inside of it, and a grid where it binds."""
    down = np.array([[1.0, 2.0, 0.5], [0.3, -1.0, 1.0]])
    x = np.array([[0.2, 0.9], [0.7, 1.4]])
    rows = down.T @ x
    free, within, _ = by_columns(down, rows, None, Box(np.zeros(2), np.ones(2)), has_bias=False)
    assert free == pytest.approx(x)
    assert within[:, 0] == pytest.approx(x[:, 0])
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 401)] * 2), axis=-1).reshape(-1, 2)
    best = grid[((grid @ down - rows[:, 1]) ** 2).sum(axis=1).argmin()]
    assert within[:, 1] == pytest.approx(best, abs=1 / 400)


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize(("levels", "examples"), [(64, 1), (256, 3)])
def test_who_knows_the_levels_finds_more(levels: int, examples: int, bias: bool) -> None:
    leak, images, labels = rounded(levels, examples, bias=bias)
    aware, claimed, wrong = errors_of(leak, images, labels)
    unaware, _, _ = errors_of(dataclasses.replace(leak, knowledge=()), images, labels)
    assert max(aware) < max(unaware)
    assert (claimed, wrong) == (examples, 0)


def test_images_are_within_their_bars() -> None:
    leak, images, labels = rounded(1024, 2)
    recovery = SoftLabelRecovery()(leak, generator=torch.Generator())
    found = AnalyticInversion()(leak, recovery, generator=torch.Generator())
    errors, _, _ = errors_of(leak, images, labels)
    assert max(errors) < min(example.error or 0.0 for example in found.examples)


@pytest.mark.parametrize("seed", range(4))
def test_few_levels_leave_classes_uncertain_and_nothing_wrong_is_claimed(seed: int) -> None:
    leak, images, labels = rounded(3, 4, seed=seed)
    assert errors_of(leak, images, labels)[2] == 0


@pytest.mark.parametrize("told", [1, 3])
def test_another_number_of_examples_is_not_claimed(told: int) -> None:
    leak, _, _ = rounded(256, 2)
    leak = dataclasses.replace(leak, batch_size=told, examples=told)
    recovery = SoftLabelRecovery()(leak, generator=torch.Generator())
    assert Status.RECOVERED not in recovery.statuses


def test_without_levels_a_leak_is_not_taken_for_rounded() -> None:
    """Noise on top of the levels hides them: nothing is built on their spacing."""
    leak, _, _ = rounded(64, 2)
    draws = torch.Generator().manual_seed(1)
    noisy = {
        name: g + 1e-3 * g.abs().max() * torch.randn(g.shape, generator=draws)
        for name, g in leak.gradients.items()
    }
    leak = dataclasses.replace(
        leak,
        gradients=noisy,
        knowledge=(Quantized(64), GaussianMechanism(None, 1e-6), HardLabels()),
    )
    try:
        answer = SoftLabelRecovery()(leak, generator=torch.Generator())
    except NotApplicable:
        pytest.fail("a refusal is a value")
    assert Status.RECOVERED not in answer.statuses
