"""Several steps on one example through convolutions: `soft-label`, `r-gap` and `relu-fit`."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss

from attacks import GradientLeak, ImageAttack, LabelRecovery, Reconstruction, Status
from attacks.images.analytic import AnalyticInversion
from attacks.images.r_gap import RGAP
from attacks.images.relu_fit import ReLUFit
from attacks.labels.soft_label import SoftLabelRecovery
from attacks.training import SGD
from attacks.unrolled.one_start import midway
from attacks.unrolled.refine import Effort
from fl_sim.bench.victims import dataset
from fl_sim.testing import build_seeded
from fl_sim.testing.leaks import leak_of_steps

ACTIVATIONS: dict[str, Any] = {
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "relu": nn.ReLU,
}


def network(activation: str, *, seed: int = 0, bias: bool = False, classes: int = 10) -> nn.Module:
    """Build two convolutions of 8 channels and a linear head, for 8×8 pixels."""
    act = ACTIVATIONS[activation]
    return build_seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), act()),
            *(nn.Conv2d(8, 8, 3, stride=2, padding=1), act()),
            *(nn.Flatten(), nn.Linear(128, classes, bias=bias)),
        ),
        seed=seed,
    )


def trained(
    model: nn.Module,
    *,
    steps: int = 5,
    lr: float = 0.05,
    seed: int = 0,
    examples: int = 1,
    loss: Any = cross_entropy,
    optimizer: Any = torch.optim.SGD,
    told: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[GradientLeak, Tensor, Tensor]:
    """Train on a digit of 8×8 pixels with a smoothed label, in float32; return the update."""
    data = dataset("mnist-5k")
    images = interpolate(data.images[seed : seed + examples], (8, 8), mode="area")
    classes = model[-1].out_features  # type: ignore[index]
    labels = torch.full((examples, classes), 0.1 / classes)
    labels[torch.arange(examples), data.labels[seed : seed + examples] % classes] += 0.9
    local = copy.deepcopy(model)
    stepper = optimizer(local.parameters(), lr=lr, **options)
    for _ in range(steps):
        stepper.zero_grad()
        loss(local(images), labels).backward()
        stepper.step()
    sgd = SGD(lr, **options) if optimizer is torch.optim.SGD else SGD(lr)
    fields = {"batch_size": examples, "examples": examples, "schedule": "full-batch"}
    leak = leak_of_steps(model, local, sgd, steps, input_shape=(1, 8, 8), **fields)
    return dataclasses.replace(leak, **(told or {})), images, labels


def attack(
    leak: GradientLeak, image_attack: type[ImageAttack]
) -> tuple[LabelRecovery, Reconstruction]:
    labels = SoftLabelRecovery()(leak, generator=torch.Generator().manual_seed(0))
    return labels, image_attack()(leak, labels, generator=torch.Generator().manual_seed(0))


def assert_silent(leak: GradientLeak, image_attack: type[ImageAttack] = RGAP) -> str:
    labels, images = attack(leak, image_attack)
    assert labels.status is not Status.RECOVERED
    assert images.status is not Status.RECOVERED
    return labels.reason or ""


@pytest.mark.parametrize(
    ("activation", "options", "least_db"),  # measured: 108 (sigmoid) to 143 dB
    [
        ("tanh", {}, 115),
        pytest.param("sigmoid", {"lr": 0.1}, 95, marks=pytest.mark.slow),
        pytest.param("relu", {"lr": 0.01}, 105, marks=pytest.mark.slow),
        pytest.param("softplus", {}, 100, marks=pytest.mark.slow),
        pytest.param("leaky", {"lr": 0.01}, 105, marks=pytest.mark.slow),
        pytest.param("tanh", {"steps": 20, "lr": 0.02}, 105, marks=pytest.mark.slow),
        pytest.param(
            "tanh",
            {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "lr": 0.02},
            105,
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_image_and_label(activation: str, options: dict[str, Any], least_db: float) -> None:
    leak, image, label = trained(network(activation), **options)
    found = RGAP if ACTIVATIONS[activation] is not nn.ReLU else ReLUFit
    labels, images = attack(leak, found)
    assert (labels.status, images.status) == (Status.RECOVERED,) * 2, (labels, images)
    assert labels.labels is not None
    assert images.images is not None
    assert float((labels.labels - label).abs().max()) < 1e-5
    assert float(-10 * (images.images - image).square().mean().log10()) > least_db


def test_a_bias_at_the_end_gives_the_scale() -> None:
    leak, image, _ = trained(network("tanh", bias=True))
    _, images = attack(leak, RGAP)
    assert images.status is Status.RECOVERED, images.reason
    assert images.images is not None
    assert float((images.images - image).square().mean().sqrt()) < 1e-5


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets little be spent on what is refused in the end: found are these in less."""
    monkeypatch.setattr("attacks.unrolled.one_replay.Effort", functools.partial(Effort, 5e8))


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    "told",
    [
        pytest.param({"local_steps": 4}, marks=pytest.mark.slow),
        pytest.param({"momentum": 0.5}, marks=pytest.mark.slow),
        pytest.param({"weight_decay": 1e-2}, marks=pytest.mark.slow),
        {"optimizer_lr": 0.051, "lr": 0.051},
    ],
    ids=str,
)
def test_a_training_that_is_told_wrongly_is_refused(told: dict[str, Any]) -> None:
    leak, *_ = trained(network("tanh"), told=told)
    assert "leaves an update that differs" in assert_silent(leak)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"loss": mse_loss}, id="another loss", marks=pytest.mark.slow),
        pytest.param(
            {"examples": 2, "told": {"examples": 1, "batch_size": 1}},
            id="two told as one",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_another_training_is_refused(changes: dict[str, Any]) -> None:
    assert_silent(trained(network("tanh"), **changes)[0])


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
def test_other_weights_are_refused() -> None:
    leak, *_ = trained(network("tanh"))
    with torch.no_grad():
        leak.model[0].weight.mul_(1.001)
    assert_silent(dataclasses.replace(leak))


@pytest.mark.parametrize(
    ("classes", "told", "sentence"),
    [
        (10, {"examples": 2, "batch_size": 2}, "are 2, and is not told to be 1"),
        (10, {"examples": None, "batch_size": None, "schedule": None}, "not told to be 1"),
        (10, {"local_steps": 101}, "101 local steps were told, .* at most 100"),
        (4, {}, "of 4 classes nothing tells a label from another rate's"),
    ],
    ids=["a batch", "unknown examples", "many steps", "few classes"],
)
def test_what_is_not_covered_costs_a_sentence(
    classes: int, told: dict[str, Any], sentence: str
) -> None:
    leak, *_ = trained(network("tanh", classes=classes), told=told)
    assert re.search(sentence, assert_silent(leak))


def test_few_equations_are_refused() -> None:
    model = build_seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 1, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 10, bias=False)
        ),
        seed=0,
    )
    assert "equations for 74 unknowns" in assert_silent(trained(model)[0])


def test_each_attack_keeps_to_its_networks() -> None:
    leak, *_ = trained(network("relu"), steps=2)
    nothing = LabelRecovery(Status.NOT_APPLICABLE, "none")
    for one, sentence in ((RGAP, "relu-fit takes such"), (AnalyticInversion, "r-gap and relu-fit")):
        found = one()(leak, nothing, generator=torch.Generator())
        assert found.status is Status.NOT_APPLICABLE
        assert sentence in (found.reason or "")


def test_the_mean_gradient_is_that_at_the_mean_weights_to_first_order() -> None:
    """Halving the rate leaves a quarter of the error."""
    errors = []
    for lr in (0.02, 0.01):
        model = network("tanh")
        leak, image, label = trained(model, lr=lr, steps=4)
        middle = midway(leak)
        loss = cross_entropy(middle.model(image.double()), label.double())
        names, weights = zip(*middle.model.named_parameters(), strict=True)
        exact = torch.autograd.grad(loss, weights)
        pairs = zip(names, exact, strict=True)
        errors.append(max(float((middle.gradients[n] - g).norm() / g.norm()) for n, g in pairs))
    assert errors[1] < 0.35 * errors[0]
