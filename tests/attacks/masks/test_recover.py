"""`soft-label` and `analytic` on batches with more examples than classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from attacks import LabelRecovery, Reconstruction, Status
from attacks.images.analytic import AnalyticInversion
from attacks.labels.soft_label import SoftLabelRecovery
from fl_sim.testing import build_seeded, gradients_of, leak_of

Build = Callable[..., Any]
LABEL_ERROR = 1e-2
"""What RECOVERED promises."""


def recover(leak: Any) -> LabelRecovery:
    return SoftLabelRecovery()(leak, generator=torch.Generator().manual_seed(0))


def invert(leak: Any, labels: LabelRecovery) -> Reconstruction:
    return AnalyticInversion()(leak, labels, generator=torch.Generator().manual_seed(0))


def label_errors(recovery: LabelRecovery, labels: Tensor) -> Tensor:
    """Return the L∞ errors of the rows that are called RECOVERED, each paired with an example."""
    assert recovery.labels is not None
    rows = [row for row, s in enumerate(recovery.statuses) if s is Status.RECOVERED]
    off = (recovery.labels[rows][:, None] - labels).abs().amax(dim=-1)
    return off[linear_sum_assignment(off.numpy())]


def psnr_db(images: Tensor | None, truth: Tensor) -> Tensor:
    assert images is not None
    error = (images[:, None] - truth.double()).square().flatten(2).mean(dim=2)
    return -10 * error[linear_sum_assignment(error.numpy())].log10()


def claims(recovery: LabelRecovery, victim: Any) -> int:
    """Return how many examples are called RECOVERED; all of them have to be right."""
    count = recovery.statuses.count(Status.RECOVERED)
    assert not count or label_errors(recovery, victim.labels).max() < LABEL_ERROR
    return count


@pytest.mark.parametrize("kind", ["label-smoothing", "mixup", "mixup+label-smoothing"])
@pytest.mark.parametrize("bias", [True, False])
def test_ten_digits_and_sixteen_examples(bias: bool, kind: str, make_digits: Build) -> None:
    """The base cell: 784-512-10, PyTorch's initialisation, float32 weights after a step at 0.1."""
    victim = make_digits(bias=bias, kind=kind)
    recovery = recover(victim.leak)
    assert recovery.status is Status.RECOVERED, recovery.reason
    assert label_errors(recovery, victim.labels).max() < 1e-4  # measured: 1e-6
    found = invert(victim.leak, recovery)
    assert found.status is Status.RECOVERED, found.reason
    assert psnr_db(found.images, victim.images).min() > 115  # measured: 129


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"classes": 2}, 115),
        ({"sent_as": "float32"}, 140),  # measured: 153
        ({"sent_as": "float64"}, 200),
        ({"lr": 0.01}, 100),
        ({"batch_size": None}, 115),
        ({"widths": (256, 256)}, 105),
        ({"widths": (256,), "activation": lambda: nn.LeakyReLU(0.1)}, 105),
    ],
)
def test_one_factor_at_a_time(options: dict[str, Any], least: float, make_digits: Build) -> None:
    victim = make_digits(**options)
    recovery = recover(victim.leak)
    assert recovery.status is Status.RECOVERED, recovery.reason
    assert recovery.batch_size == 16
    assert label_errors(recovery, victim.labels).max() < 1e-3
    assert psnr_db(invert(victim.leak, recovery).images, victim.images).min() > least


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "options"),
    [
        (32, {"widths": (512,)}),
        (48, {"widths": (1024,)}),
        (64, {"widths": (1024,)}),
        (32, {"widths": (512, 512)}),
        (16, {"widths": (256, 128, 64)}),
    ],
)
def test_beyond_the_closed_form(size: int, options: dict[str, Any], make_digits: Build) -> None:
    for seed in range(3):
        victim = make_digits(size, seed=seed, **options)
        recovery = recover(victim.leak)
        assert recovery.status is Status.RECOVERED, recovery.reason
        assert label_errors(recovery, victim.labels).max() < 1e-3
        assert psnr_db(invert(victim.leak, recovery).images, victim.images).min() > 105


def test_two_classes_without_one_smoothing_stay_open(make_digits: Build) -> None:
    """A label of two classes is one number, and so is an unknown factor on the gradient."""
    victim = make_digits(8, widths=(128,), classes=2, kind="mixup")
    recovery = recover(victim.leak)
    assert claims(recovery, victim) == 0
    assert recovery.features is not None
    assert recovery.features.isfinite().all()  # which no label is needed for


@pytest.mark.parametrize("bias", [True, False])
def test_equal_examples_are_one_row_and_said_so(bias: bool, make_digits: Build) -> None:
    images = make_digits(12).images
    images[1] = images[0]
    victim = make_digits(12, widths=(256,), images=images, bias=bias, sent_as="float64")
    recovery = recover(victim.leak)
    assert claims(recovery, victim) == 10
    assert len(recovery.statuses) == 12
    reasons = " ".join(example.reason or "" for example in recovery.examples)
    assert "another example's" in reasons
    assert "several examples share its input" in reasons


@pytest.mark.parametrize("wrong", [15, 17])
def test_a_wrong_batch_size_claims_nothing_false(wrong: int, make_digits: Build) -> None:
    victim = make_digits()
    recovery = recover(dataclasses.replace(victim.leak, batch_size=wrong))
    assert recovery.status is not Status.RECOVERED
    assert recovery.reason
    claims(recovery, victim)


def test_a_wrong_learning_rate_is_a_factor(make_digits: Build) -> None:
    victim = make_digits(widths=(256,))
    gradients = {name: g / 2 for name, g in victim.leak.gradients.items()}
    recovery = recover(dataclasses.replace(victim.leak, gradients=gradients, lr=0.2))
    assert recovery.gradient_scale == pytest.approx(0.5, rel=1e-3)
    claims(recovery, victim)


def another_loss(victim: Any) -> Any:
    return gradients_of(victim.model, victim.images, victim.labels.float(), mse_loss)


def a_scaled_layer(victim: Any) -> Any:
    gradients = dict(victim.leak.gradients)
    return {n: 1.01 * g if n.endswith("2.weight") else g for n, g in gradients.items()}


def other_examples_above(victim: Any) -> Any:
    """The last layer's gradient is that of other images."""
    other = gradients_of(victim.model, victim.images.flip(2), victim.labels.float())
    last = list(victim.leak.gradients)[-2:]
    return {n: other[n] if n in last else g for n, g in victim.leak.gradients.items()}


def noise(victim: Any) -> Any:
    draws = torch.Generator().manual_seed(0)
    gradients = victim.leak.gradients.items()
    return {n: g + g.std() * torch.randn(g.shape, generator=draws) for n, g in gradients}


@pytest.mark.parametrize("change", [another_loss, a_scaled_layer, other_examples_above, noise])
def test_claims_nothing_of_a_changed_gradient(
    change: Callable[[Any], Any], make_digits: Build
) -> None:
    victim = make_digits(12, widths=(256,), sent_as="float32")
    recovery = recover(dataclasses.replace(victim.leak, gradients=change(victim)))
    assert recovery.reason
    assert Status.RECOVERED not in recovery.statuses


def test_claims_nothing_under_other_weights(make_digits: Build) -> None:
    victim = make_digits(12, widths=(256,), sent_as="float32")
    with torch.no_grad():
        weight = victim.leak.model[2].weight
        weight.add_(1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    recovery = recover(dataclasses.replace(victim.leak))
    assert Status.RECOVERED not in recovery.statuses


def test_is_pure_and_seeded(make_digits: Build) -> None:
    victim = make_digits(widths=(128,))
    before = {name: g.clone() for name, g in victim.leak.gradients.items()}
    state = torch.random.get_rng_state()
    one, two = recover(victim.leak), recover(victim.leak)
    assert one.labels is not None
    assert two.labels is not None
    assert torch.equal(one.labels, two.labels)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(g, before[name]) for name, g in victim.leak.gradients.items())


def test_features_behind_convolutions(make_digits: Build) -> None:
    """Of each of 12 digits what LeNet-5's convolutions made, and its label, in ten classes."""
    digits = make_digits(12)

    def build() -> nn.Sequential:
        return nn.Sequential(
            *[nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)],
            *[nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()],
            *[nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)],
        )

    model = build_seeded(build)
    leak = leak_of(model, digits.images, digits.labels, sent_as="float32")
    recovery = recover(leak)
    assert recovery.status is Status.RECOVERED, recovery.reason
    assert label_errors(recovery, digits.labels).max() < 1e-4  # measured: 4e-7
    assert recovery.features is not None
    truth = model[:-1](digits.images).detach().double()
    off = (recovery.features[:, None] - truth).norm(dim=2) / truth.norm(dim=1)
    assert off.amin(1).max() < 1e-3  # measured: 2e-6
