"""Behind PRECODE's bottleneck: what the layers before it show, and the draws."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attacks import GradientLeak, Normalization, Status
from attacks.answers import LabelRecovery, Reconstruction
from attacks.facts import Bottleneck, GaussianMechanism
from attacks.images.analytic import AnalyticInversion
from attacks.labels.soft_label import SoftLabelRecovery
from defenses.precode import Precode
from fl_sim.testing import build_seeded

pytestmark = pytest.mark.usefixtures("moves_generators")  # the network draws whenever it runs
LR, SHAPE, CLASSES = 0.1, (1, 8, 8), 5


def leak_of(
    batch: int,
    *,
    size: int = 16,
    beta: float = 1e-2,
    bias: bool = False,
    noise: float = 0.0,
    seed: int = 1,
) -> tuple[GradientLeak, Tensor, Tensor]:
    """Return a float32 update, images and labels, which are any of sum 1."""
    plain = build_seeded(
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 96, bias=bias),
            nn.ReLU(),
            nn.Linear(96, 96, bias=bias),
            nn.ReLU(),
            nn.Linear(96, CLASSES, bias=bias),
        )
    )
    draws = torch.Generator().manual_seed(seed)
    defense = Precode(size, beta)
    model = defense.on_model(plain, draws)
    images = torch.rand(batch, *SHAPE, generator=draws)
    labels = (3 * torch.randn(batch, CLASSES, generator=draws)).softmax(dim=1)
    parameters = dict(model.named_parameters())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loss = cross_entropy(model(images), labels)
        found = torch.autograd.grad(loss, list(parameters.values()))
    gradients = {}
    for (name, before), gradient in zip(parameters.items(), found, strict=True):
        sent = before.detach() - LR * gradient + noise * torch.randn(before.shape, generator=draws)
        gradients[name] = (before.detach() - sent).double() / LR
    leak = GradientLeak(
        model,
        gradients,
        batch,
        SHAPE,
        lr=LR,
        update_dtype=torch.float32,
        knowledge=defense.facts(),
        normalization=Normalization.of_range(0, 1),
    )
    return leak, images, labels


def attacked(leak: GradientLeak) -> tuple[LabelRecovery, Reconstruction]:
    generator = torch.Generator().manual_seed(0)
    labels = SoftLabelRecovery()(leak, generator=generator)
    return labels, AnalyticInversion()(leak, labels, generator=generator)


def statuses(answer: LabelRecovery | Reconstruction) -> set[Status]:
    return {answer.status, *answer.statuses}


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("batch", [1, 2, 6])
@pytest.mark.parametrize("seed", [1, 2])
def test_images_and_labels_are_found_whatever_was_drawn(batch: int, bias: bool, seed: int) -> None:
    leak, images, labels = leak_of(batch, bias=bias, seed=seed)
    found, shown = attacked(leak)
    assert found.status is Status.RECOVERED, found.reason
    assert shown.status is Status.RECOVERED, shown.reason
    assert shown.images is not None
    assert found.labels is not None
    off = (shown.images[:, None] - images).square().flatten(2).mean(dim=2)
    nearest = off.argmin(dim=1)
    assert sorted(nearest.tolist()) == list(range(batch))
    errors = torch.tensor([example.error for example in shown.examples])
    assert (off.amin(dim=1).sqrt() < errors).all()
    bars = torch.tensor([example.label_bar for example in found.examples])
    assert ((found.labels - labels[nearest]).abs().amax(dim=1) < bars).all()


def test_another_weight_of_the_divergence_is_found_out_and_leaves_the_images() -> None:
    leak, _, _ = leak_of(4)
    wrong = dataclasses.replace(leak, knowledge=(Bottleneck(16, 1.1e-2),))
    found, shown = attacked(wrong)
    assert Status.RECOVERED not in statuses(found)
    assert shown.status is Status.RECOVERED


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_factor_that_is_not_told_is_no_label(factor: float) -> None:
    leak, _, _ = leak_of(4)
    scaled = {name: factor * gradient for name, gradient in leak.gradients.items()}
    found, _ = attacked(dataclasses.replace(leak, gradients=scaled))
    assert Status.RECOVERED not in statuses(found)


@pytest.mark.parametrize("layer", ["1.", "3.", "5.0.encoder.", "5.0.decoder.", "5.1."])
def test_a_layer_of_other_examples_is_found_out(layer: str) -> None:
    leak, _, _ = leak_of(4)
    other, _, _ = leak_of(4, seed=7)
    mixed = {n: (other if n.startswith(layer) else leak).gradients[n] for n in leak.gradients}
    found, shown = attacked(dataclasses.replace(leak, gradients=mixed))
    assert Status.RECOVERED not in statuses(found)
    if not layer.startswith(("5.0.decoder", "5.1")):  # behind the draw nothing tells of images
        assert Status.RECOVERED not in statuses(shown)


@pytest.mark.parametrize("told", [3, 5])
def test_another_number_of_examples_is_found_out(told: int) -> None:
    leak, _, _ = leak_of(4)
    found, shown = attacked(dataclasses.replace(leak, batch_size=told))
    assert Status.RECOVERED not in statuses(found) | statuses(shown)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("noise", [1e-6, 1e-5, 1e-4])
def test_claims_hold_under_noise(noise: float, batch: int) -> None:
    leak, images, labels = leak_of(batch, noise=noise)
    for known in (leak.knowledge, (*leak.knowledge, GaussianMechanism(None, noise))):
        found, shown = attacked(dataclasses.replace(leak, knowledge=known))
        for row, example in enumerate(shown.examples):
            if example.status is Status.RECOVERED:
                assert shown.images is not None
                off = (shown.images[row] - images).square().flatten(1).mean(dim=1).min().sqrt()
                assert off < AnalyticInversion().tolerance
        for example in found.examples:
            if example.status is Status.RECOVERED:
                assert example.label is not None
                assert (example.label - labels).abs().amax(dim=1).min() < 1e-2


def test_who_does_not_know_claims_no_image_of_a_batch() -> None:
    leak, _, _ = leak_of(4)
    found, shown = attacked(dataclasses.replace(leak, knowledge=()))
    assert Status.RECOVERED not in statuses(found) | statuses(shown)


def test_a_narrow_bottleneck_leaves_labels_open_and_shows_images() -> None:
    leak, _, _ = leak_of(4, size=5)
    found, shown = attacked(leak)
    assert found.status is Status.NOT_APPLICABLE
    assert "a bottleneck of 5 variables doesn't show the errors of 5 classes" in str(found.reason)
    assert shown.status is Status.RECOVERED


def test_a_bottleneck_that_is_not_there_is_one_sentence() -> None:
    leak, _, _ = leak_of(4)
    found, shown = attacked(dataclasses.replace(leak, knowledge=(Bottleneck(20, 1e-2),)))
    assert "no bottleneck of 20 variables in front of its last layer" in str(found.reason)
    assert "no bottleneck of 20 variables in front of its last layer" in str(shown.reason)
