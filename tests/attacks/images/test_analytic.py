"""`analytic`: exact images of fully connected networks, and no claim that isn't kept."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import LabelRecovery, Reconstruction, Status
from attacks.images.analytic import AnalyticInversion
from attacks.labels.soft_label import SoftLabelRecovery

Build = Callable[..., Any]
COLOUR = (3, 8, 8)
LEAKY = functools.partial(nn.LeakyReLU, 0.1)


def invert(victim: Any) -> tuple[LabelRecovery, Reconstruction]:
    generator = torch.Generator()
    labels = SoftLabelRecovery()(victim.leak, generator=generator)
    return labels, AnalyticInversion()(victim.leak, labels, generator=generator)


def psnr_db(image: Tensor, truth: Tensor) -> float:
    return float(-10 * (image - truth.double()).square().mean().log10())


@pytest.mark.parametrize("sent_as", ["update", "float32"])
@pytest.mark.parametrize("kind", ["label-smoothing", "mixup"])
@pytest.mark.parametrize(
    ("shape", "bias", "activation"),
    [
        ((1, 12, 12), False, nn.ReLU),
        ((1, 12, 12), True, nn.ReLU),
        (COLOUR, False, nn.ReLU),
        (COLOUR, False, LEAKY),
        (COLOUR, True, nn.Sigmoid),
    ],
)
def test_recovers_the_image(
    shape: tuple[int, int, int],
    bias: bool,
    activation: Any,
    kind: str,
    sent_as: str,
    make_model: Build,
    make_label: Build,
    make_victim: Build,
) -> None:
    draws = np.random.default_rng(1)
    for seed in range(3):
        model = make_model(10, bias=bias, activation=activation, seed=seed, shape=shape)
        label = make_label(10, kind, draws)
        victim = make_victim(model, label, sent_as=sent_as, seed=seed, shape=shape)
        _, found = invert(victim)
        assert found.status is Status.RECOVERED, found.reason
        assert found.images is not None
        assert found.images.shape == (1, *shape)
        # Measured: 117 dB at least (sigmoid with a bias, weight update), 130-160 as a rule.
        assert psnr_db(found.images, victim.image) > 100
        residual = found.examples[0].residual
        assert residual is not None
        assert residual < 1e-4


def test_noise_makes_no_false_claim(
    make_model: Build, make_label: Build, make_victim: Build
) -> None:
    """RECOVERED claims 50 dB."""
    draws = np.random.default_rng(2)
    statuses: Counter[str] = Counter()
    for seed in range(60):
        noise, factor = float(10 ** draws.uniform(-7, -2)), float(draws.choice([1, 1, 0.5]))
        model = make_model(10, bias=seed % 3 == 0, seed=seed)
        label = make_label(10, ("hard", "label-smoothing", "mixup")[seed % 3], draws)
        victim = make_victim(model, label, seed=seed, noise_std=noise, factor=factor)
        _, found = invert(victim)
        statuses[found.status.value] += 1
        if found.status is Status.RECOVERED:
            assert found.images is not None
            assert psnr_db(found.images, victim.image) >= 50, (seed, noise)
        else:
            assert found.reason
        if found.images is not None and found.images.isfinite().all():
            assert 0 <= found.images.min() <= found.images.max() <= 1
    assert statuses["RECOVERED"] > 5
    assert len(statuses) > 1


def test_the_scale_of_a_clipped_gradient_is_recovered_with_the_label(
    make_model: Build, make_label: Build, make_victim: Build
) -> None:
    """Without biases any scale of the image fits its own feature; the label fixes it."""
    label = make_label(10, "label-smoothing", np.random.default_rng(3))
    victim = make_victim(make_model(10), label, factor=0.5)
    labels, found = invert(victim)
    assert labels.status is Status.RECOVERED
    assert labels.gradient_scale == pytest.approx(0.5, rel=1e-4)  # measured: within 1e-6
    assert found.status is Status.RECOVERED
    assert found.images is not None
    assert psnr_db(found.images, victim.image) > 80  # float32 rounding


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh])
def test_the_shortcut_needs_a_homogeneous_network_and_the_chain_doesnt(
    activation: type[nn.Module], make_model: Build, make_label: Build, make_victim: Build
) -> None:
    label = make_label(10, "hard", np.random.default_rng(4))
    victim = make_victim(make_model(10, activation=activation), label)
    labels, found = invert(victim)
    assert found.status is Status.RECOVERED, found.reason
    assert found.images is not None
    assert psnr_db(found.images, victim.image) > 60  # a weight update; measured: 71 and 104 dB
    shortcut = AnalyticInversion(route="shortcut")
    refused = shortcut(victim.leak, labels, generator=torch.Generator())
    assert refused.status is Status.NOT_APPLICABLE
    assert refused.images is None
    assert "homogeneous" in str(refused.reason)


@pytest.mark.parametrize("sent_as", ["update", "float32", "float64"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU, LEAKY])
def test_both_routes_agree(
    activation: Any,
    bias: bool,
    sent_as: str,
    make_model: Build,
    make_label: Build,
    make_victim: Build,
) -> None:
    label = make_label(10, "label-smoothing", np.random.default_rng(9))
    model = make_model(10, bias=bias, activation=activation)
    victim = make_victim(model, label, sent_as=sent_as)
    labels = SoftLabelRecovery()(victim.leak, generator=torch.Generator())
    images = []
    for route in ("shortcut", "chain"):
        attack = AnalyticInversion(route=route)  # type: ignore[arg-type]
        found = attack(victim.leak, labels, generator=torch.Generator())
        assert found.status is Status.RECOVERED, found.reason
        images.append(found.images)
    # Float32 gradients and the labels' scales are exact to about 1e-6.
    assert torch.allclose(*images, rtol=0, atol=1e-10 if sent_as == "float64" else 2e-5)


def test_the_chain_covers_biases_in_some_layers(make_label: Build, make_victim: Build) -> None:
    """A bias above a first layer without one: the network isn't homogeneous."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(),
            nn.Linear(144, 64, bias=False),
            nn.ReLU(),
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Linear(32, 10, bias=False),
        )
    victim = make_victim(
        model, make_label(10, "mixup", np.random.default_rng(2)), sent_as="float32"
    )
    _, found = invert(victim)
    assert found.status is Status.RECOVERED, found.reason
    assert found.images is not None
    assert psnr_db(found.images, victim.image) > 80  # default initialisation


def test_says_that_convolutions_are_not_covered(make_label: Build, make_victim: Build) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 10, bias=False)
        )
    label = make_label(10, "hard", np.random.default_rng(5))
    _, found = invert(make_victim(model, label))
    assert found.status is Status.NOT_APPLICABLE
    assert "first layer must be linear" in str(found.reason)


def test_needs_the_recovered_feature_without_biases(
    make_model: Build, make_label: Build, make_victim: Build
) -> None:
    victim = make_victim(make_model(10), make_label(10, "hard", np.random.default_rng(6)))
    nothing = LabelRecovery(Status.FAILED, "it failed")
    found = AnalyticInversion()(victim.leak, nothing, generator=torch.Generator())
    assert found.status is Status.NOT_APPLICABLE
    assert "feature" in str(found.reason)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"local_steps": 2, "batch_size": 4, "schedule": "steps"}, "2 local steps"),
        ({"batch_size": 4}, "needs features of shape (4, 32)"),
    ],
)
def test_needs_one_step_and_the_features_of_its_batch(
    fields: dict[str, int],
    sentence: str,
    make_model: Build,
    make_label: Build,
    make_victim: Build,
) -> None:
    victim = make_victim(make_model(10), make_label(10, "hard", np.random.default_rng(7)))
    leak = dataclasses.replace(victim.leak, **fields)
    labels = SoftLabelRecovery()(victim.leak, generator=torch.Generator())
    found = AnalyticInversion()(leak, labels, generator=torch.Generator())
    assert found.status is Status.NOT_APPLICABLE
    assert sentence in str(found.reason)


@pytest.mark.parametrize(
    ("layer", "before"), [(nn.Dropout(0.5), 2), (nn.BatchNorm1d(32), 6)], ids=["pixels", "norm"]
)
def test_refuses_layers_in_train_mode(
    layer: nn.Module, before: int, make_model: Build, make_label: Build, make_victim: Build
) -> None:
    """What dropout took of the pixels, or batch norm saw, isn't in the update."""
    model = make_model(10)
    model.insert(before, layer)
    victim = make_victim(model.eval(), make_label(10, "hard", np.random.default_rng(8)))
    leak = dataclasses.replace(victim.leak, mode="train")
    labels = SoftLabelRecovery()(leak, generator=torch.Generator())
    found = AnalyticInversion()(leak, labels, generator=torch.Generator())
    assert found.status is Status.NOT_APPLICABLE
    assert "train mode" in str(found.reason)


def test_refuses_bad_parameters() -> None:
    with pytest.raises(ValueError, match="tolerance must be above 0"):
        AnalyticInversion(0.0)
    with pytest.raises(ValueError, match="route must be auto, shortcut or chain, found 'long'"):
        AnalyticInversion(route="long")  # type: ignore[arg-type]
