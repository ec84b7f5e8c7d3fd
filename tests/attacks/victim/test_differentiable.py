"""The victim as a function: the client's gradient, differentiable, and nothing left behind."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from attacks import GradientLeak, Normalization, NotApplicable
from attacks.victim.differentiable import DifferentiableVictim
from fl_sim.testing.leaks import build_seeded, leak_of

SHAPE = (1, 6, 6)


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
    )


def victim(*, mode: str = "eval") -> tuple[GradientLeak, torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(3, *SHAPE, generator=draws, dtype=torch.float64)
    labels = torch.rand(3, 4, generator=draws, dtype=torch.float64).softmax(dim=1)
    model = build_seeded(normed).train(mode == "train")
    model[1].running_mean = torch.tensor([0.3, -0.2, 0.1])
    before = {name: part.clone() for name, part in model.named_buffers()}
    leak = leak_of(model, images, labels, sent_as="float64", mode=mode)
    for name, part in leak.model.named_buffers():
        part.copy_(before[name])
    return leak, images, labels


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_gradient_is_the_clients_and_buffers_stay(mode: str) -> None:
    leak, images, labels = victim(mode=mode)
    before = {name: part.clone() for name, part in leak.model.state_dict().items()}
    was_training = leak.model.training
    seen = DifferentiableVictim.of(leak)
    gradient, _ = seen.gradient(images, labels)
    assert gradient.keys() == leak.gradients.keys()
    for name, part in gradient.items():
        torch.testing.assert_close(part, leak.gradients[name], rtol=1e-10, atol=1e-14)
    assert all(torch.equal(part, before[n]) for n, part in leak.model.state_dict().items())
    assert leak.model.training == was_training


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_it_is_differentiable_in_images_and_labels(mode: str) -> None:
    leak, images, labels = victim(mode=mode)
    seen = DifferentiableVictim.of(leak)

    def size(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        gradient, _ = seen.gradient(images, labels)
        return torch.stack([part.square().sum() for part in gradient.values()]).sum()

    given = (images.requires_grad_(), labels.requires_grad_())
    assert torch.autograd.gradcheck(size, given, eps=1e-6, atol=1e-6)


def test_layers_inputs_are_seen_and_pixels_are_normalised() -> None:
    leak, images, labels = victim()
    loader = Normalization(0.4, 0.5)
    told = dataclasses.replace(leak, normalization=loader)
    _, inputs = DifferentiableVictim.of(told).gradient(images, labels, watched=["0", "4"])
    torch.testing.assert_close(inputs["0"], (images - 0.4) / 0.5)
    assert inputs["4"].shape == (3, 48)


def test_frozen_parameters_are_constants() -> None:
    leak, images, labels = victim()
    kept = {name: part for name, part in leak.gradients.items() if not name.startswith("0")}
    seen = DifferentiableVictim.of(dataclasses.replace(leak, gradients=kept))
    gradient, _ = seen.gradient(images, labels)
    assert gradient.keys() == kept.keys()
    assert "0.weight" in seen.constants


def test_dropout_in_train_mode_is_refused() -> None:
    model = build_seeded(
        lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 4))
    ).eval()
    image = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    leak = leak_of(model, image, torch.eye(4)[:1], mode="train")
    with pytest.raises(NotApplicable, match=r"layer '1' \(Dropout\) ran in train mode, whose"):
        DifferentiableVictim.of(leak)


@pytest.mark.parametrize(
    ("value", "sentence"), [(0.0, "no gradient to match"), (float("nan"), "NaN or infinite")]
)
def test_a_gradient_without_numbers_is_refused(value: float, sentence: str) -> None:
    leak, _, _ = victim()
    gradients = {name: torch.full_like(part, value) for name, part in leak.gradients.items()}
    with pytest.raises(NotApplicable, match=sentence):
        DifferentiableVictim.of(dataclasses.replace(leak, gradients=gradients))


def test_the_loss_is_that_of_the_clients_where_labels_do_not_sum_to_one() -> None:
    leak, images, labels = victim()
    model = leak.model
    parameters = list(model.parameters())
    expected = torch.autograd.grad(cross_entropy(model(images), 0.9 * labels), parameters)
    found, _ = DifferentiableVictim.of(leak).gradient(images, 0.9 * labels)
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other)


class Drawing(nn.Flatten):
    """Adds noise, as PRECODE does."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images + torch.randn_like(images))


def test_a_network_that_draws_in_eval_mode_too_is_refused() -> None:
    draws = torch.Generator().manual_seed(0)
    images, labels = torch.rand(1, *SHAPE, generator=draws), torch.eye(4)[:1]
    with (
        torch.random.fork_rng(),
        pytest.raises(NotApplicable, match="the network draws at random in eval mode too"),
    ):
        model = build_seeded(lambda: nn.Sequential(Drawing(), nn.Linear(36, 4)))
        DifferentiableVictim.of(leak_of(model, images, labels))
