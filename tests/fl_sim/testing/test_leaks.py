"""Builders for tests: seeded, apart from the global generators, and as a client would compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from fl_sim.leakage.judge import describe_label
from fl_sim.testing import build_seeded, draw_label, gradients_of, leak_of

IMAGES = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.eye(4)[:2]


def model(seed: int = 0) -> nn.Sequential:
    return build_seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), seed=seed)


def test_a_seed_decides_the_weights() -> None:
    first, again, other = (model(seed).state_dict()["1.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    "augmentation", ["hard", "label-smoothing", "mixup", "mixup+label-smoothing"]
)
def test_a_label_is_augmented_as_it_says(augmentation: str) -> None:
    draws = np.random.default_rng(0)
    for _ in range(10):
        label = draw_label(8, augmentation, draws)
        assert label.dtype is torch.float64
        assert describe_label(label[0]).type == augmentation
        assert float(label.sum()) == pytest.approx(1)


def test_a_gradient_is_that_of_the_loss_and_leaves_the_network_alone() -> None:
    network = model().double()
    network[1].bias.requires_grad_(False)
    gradients = gradients_of(network, IMAGES.double(), LABELS, mse_loss)
    assert list(gradients) == ["1.weight"]
    assert network[1].weight.grad is None
    logits = network(IMAGES.double()).detach()
    expected = 2 / logits.numel() * (logits - LABELS).T @ IMAGES.double().flatten(1)
    assert torch.allclose(gradients["1.weight"], expected, rtol=1e-12)


def test_an_update_is_scaled_and_noisy_and_rounded_to_weights() -> None:
    clean = leak_of(model(), IMAGES, LABELS)
    scaled = leak_of(model(), IMAGES, LABELS, sent_as="update", factor=0.5)
    draws = torch.Generator().manual_seed(0)
    noisy = leak_of(
        model(), IMAGES, LABELS, sent_as="update", lr=0.2, noise_std=0.01, generator=draws
    )
    again = torch.Generator().manual_seed(0)
    for name, gradient in clean.gradients.items():
        half = scaled.gradients[name]
        # Weights below 1 are rounded by up to 3e-8, at lr 0.1.
        assert (half - gradient / 2).abs().max() < 1e-6
        weight = model().get_parameter(name).detach()
        noise = 0.01 * torch.randn(weight.shape, generator=again) / 0.2
        assert (noisy.gradients[name] - gradient + noise).abs().max() < 1e-6
    assert (scaled.lr, scaled.update_dtype, scaled.batch_size) == (0.1, torch.float32, 2)
    assert (clean.lr, clean.update_dtype, clean.input_shape) == (None, None, (1, 3, 3))


def test_fields_of_a_leak_can_be_told_otherwise() -> None:
    leak = leak_of(model(), IMAGES, LABELS, batch_size=None, mode="train")
    assert leak.batch_size is None
    assert leak.mode == "train"
