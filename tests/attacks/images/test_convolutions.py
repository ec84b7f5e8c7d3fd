"""`r-gap` and `relu-fit`: exact images of convolutional networks, no claim that isn't kept."""

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

from attacks import GradientLeak, LabelRecovery, Reconstruction, Status
from attacks.convolution.inversion import ChainInversion
from attacks.images.r_gap import RGAP
from attacks.images.relu_fit import ReLUFit
from attacks.labels.soft_label import SoftLabelRecovery
from fl_sim.testing import check_image_attack, check_no_claim, draw_label, gradients_of, leak_of

Build = Callable[..., Any]
GREY, COLOUR = (1, 12, 12), (3, 12, 12)
LEAKY = functools.partial(nn.LeakyReLU, 0.1)
RELU = ((16, 1), (32, 2))
SMOOTH = ((12, 2), (12, 2), (12, 1))


class Shift(nn.Module):
    """Normalises."""

    def forward(self, images: Tensor) -> Tensor:
        """Map [0, 1] to [-2, 2]."""
        return (images - 0.5) / 0.25


def convolutional(
    layers: tuple[tuple[int, int], ...],
    activation: Any,
    *,
    shape: tuple[int, int, int] = COLOUR,
    kernel: int = 3,
    hidden: int = 0,
    bias: bool = False,
    spread: float = 0.0,
    classes: int = 10,
    seed: int = 0,
) -> nn.Sequential:
    """Build convolutions of (channels, stride) with an activation each, and a linear head.

    Args:
        layers: channels and stride of each.
        activation: makes one.
        shape: of the image.
        kernel: of all convolutions.
        hidden: width of a linear layer before the head; 0 for none.
        bias: whether linear layers have one.
        spread: weights uniform in ± it; 0 for PyTorch's own.
        classes: K.
        seed: of the weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        modules: list[nn.Module] = [Shift()]
        channels, height, width = shape
        for out, stride in layers:
            convolution = nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2)
            modules += [convolution, activation()]
            channels, height, width = out, -(-height // stride), -(-width // stride)
        size = channels * height * width
        modules.append(nn.Flatten())
        if hidden:
            modules += [nn.Linear(size, hidden, bias=bias), activation()]
        modules.append(nn.Linear(hidden or size, classes, bias=bias))
        model = nn.Sequential(*modules)
        if spread:
            for parameter in model.parameters():
                nn.init.uniform_(parameter, -spread, spread)
    return model


def lenet(**options: Any) -> nn.Sequential:
    return convolutional(SMOOTH, nn.Sigmoid, kernel=5, spread=0.5, **options)


def attack_on(model: nn.Module, **options: Any) -> ChainInversion:
    """Return the attack whose network this is."""
    smooth = (nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus)
    if any(isinstance(module, smooth) for module in model.modules()):
        return RGAP(**{k: v for k, v in options.items() if k == "respects_rank"})
    return ReLUFit(**options)


def invert(
    leak: GradientLeak, attack: ChainInversion | None = None
) -> tuple[LabelRecovery, Reconstruction]:
    labels = SoftLabelRecovery()(leak, generator=torch.Generator())
    attack = attack or attack_on(leak.model)
    return labels, attack(leak, labels, generator=torch.Generator().manual_seed(0))


def psnr_db(found: Reconstruction, truth: Tensor) -> float:
    assert found.images is not None
    return float(-10 * (found.images - truth.double()).square().mean().log10())


@pytest.mark.parametrize("name", ["r-gap", "relu-fit"])
def test_keeps_to_the_rules_of_attacks(name: str) -> None:
    check_image_attack(name)


@pytest.mark.parametrize("kind", ["label-smoothing", "mixup"])
@pytest.mark.parametrize(
    ("build", "gradient_db", "update_db"),
    [
        # A few dB under the least of 20 seeds, which is 87 and 74 dB for sigmoids, whose rounding
        # grows with each layer, and 133 and 132 for what is linear in pieces.
        (lenet, 80, 65),
        (functools.partial(lenet, shape=GREY, bias=True), 80, 65),
        (functools.partial(convolutional, SMOOTH, nn.Tanh, kernel=5), 80, 65),
        (functools.partial(convolutional, SMOOTH, nn.ELU, kernel=5), 80, 65),
        (functools.partial(convolutional, SMOOTH, nn.Softplus, kernel=5), 80, 65),
        (functools.partial(convolutional, RELU, nn.ReLU), 120, 115),
        (functools.partial(convolutional, RELU, nn.ReLU, bias=True, classes=100), 120, 115),
        (functools.partial(convolutional, RELU, nn.ReLU, shape=GREY), 120, 115),
        (functools.partial(convolutional, RELU, LEAKY), 120, 115),
        (functools.partial(convolutional, RELU, nn.ReLU, hidden=48), 100, 90),
        (functools.partial(convolutional, ((16, 1), (16, 1), (32, 2)), nn.ReLU), 120, 110),
    ],
)
def test_recovers_the_image(
    build: Build,
    gradient_db: float,
    update_db: float,
    kind: str,
    make_label: Build,
    make_victim: Build,
) -> None:
    draws = np.random.default_rng(1)
    for seed in range(2):
        model = build(seed=seed)
        label = make_label(model[-1].out_features, kind, draws)
        shape = (model[1].in_channels, 12, 12)
        for sent_as, least in (("float32", gradient_db), ("update", update_db)):
            victim = make_victim(model, label, sent_as=sent_as, seed=seed, shape=shape)
            _, found = invert(victim.leak)
            assert found.status is Status.RECOVERED, found.reason
            assert found.reason is None
            assert psnr_db(found, victim.image) > least, sent_as


def test_noise_makes_no_false_claim(make_label: Build, make_victim: Build) -> None:
    """RECOVERED claims 50 dB, whatever is added to the update."""
    draws = np.random.default_rng(2)
    statuses: Counter[str] = Counter()
    for seed in range(40):
        noise, factor = float(10 ** draws.uniform(-8, -3)), float(draws.choice([1, 1, 0.5]))
        model = lenet(seed=seed) if seed % 2 else convolutional(RELU, nn.ReLU, seed=seed)
        label = make_label(10, ("hard", "label-smoothing", "mixup")[seed % 3], draws)
        victim = make_victim(model, label, seed=seed, noise_std=noise, factor=factor, shape=COLOUR)
        _, found = invert(victim.leak)
        statuses[found.status.value] += 1
        if found.status is Status.RECOVERED:
            assert psnr_db(found, victim.image) >= 50, (seed, noise)
        else:
            assert found.reason
        if found.images is not None and found.images.isfinite().all():
            assert 0 <= found.images.min() <= found.images.max() <= 1
    assert statuses["RECOVERED"] > 5
    assert len(statuses) > 1


def test_noise_that_is_seen_costs_no_more_than_its_size(
    make_label: Build, make_victim: Build
) -> None:
    """Noise makes dead units look alive; they are told apart by its size."""
    for seed in range(4):
        label = make_label(10, "label-smoothing", np.random.default_rng(seed))
        model = convolutional(RELU, nn.ReLU, seed=seed)
        victim = make_victim(model, label, seed=seed, noise_std=1e-7, shape=COLOUR)
        _, found = invert(victim.leak)
        assert found.status is Status.RECOVERED, found.reason
        assert psnr_db(found, victim.image) > 85  # 103 at least in 12 seeds


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (convolutional(((4, 2), (4, 2)), nn.ReLU), "too few"),
        (convolutional(((4, 2), (4, 2)), nn.Sigmoid), "too few"),
        (convolutional(((4, 2), (4, 2)), LEAKY), "too few"),
    ],
)
def test_counts_equations_beforehand(
    model: nn.Module, sentence: str, make_label: Build, make_victim: Build
) -> None:
    label = make_label(10, "label-smoothing", np.random.default_rng(3))
    leak = make_victim(model, label, shape=COLOUR).leak
    _, found = invert(leak)
    assert found.status is Status.NOT_IDENTIFIABLE
    assert sentence in str(found.reason)
    assert found.images is None
    _, tried = invert(leak, attack_on(model, respects_rank=False, iterations=3, starts=1))
    assert tried.status is not Status.RECOVERED


class Residual(nn.Module):
    """Adds a convolution's input to its output."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to its like."""
        added: Tensor = images + self.convolution(images)
        return added


HEAD = (nn.Flatten(), nn.Linear(3 * 144, 10))


@pytest.mark.parametrize(
    ("modules", "sentence"),
    [
        ([Residual(), nn.ReLU(), *HEAD], "can't invert"),
        ([nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), *HEAD], "BatchNorm2d"),
        ([nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2), nn.MaxPool2d(2), *HEAD], "MaxPool2d"),
        ([nn.Conv2d(3, 3, 3, padding=1), nn.GELU(), *HEAD], "GELU"),
        ([nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.ReLU(), *HEAD], "one group"),
        ([nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), nn.ReLU(), *HEAD], "padding"),
        (
            [nn.AvgPool2d(3, 1, 1), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), *HEAD],
            "linear on the pixels",
        ),
    ],
)
def test_names_what_it_cannot_invert(
    modules: list[nn.Module], sentence: str, make_label: Build, make_victim: Build
) -> None:
    label = make_label(10, "label-smoothing", np.random.default_rng(4))
    victim = make_victim(nn.Sequential(*modules).eval(), label, shape=COLOUR)
    _, found = invert(victim.leak)
    assert found.status is Status.NOT_APPLICABLE
    assert found.images is None
    assert sentence in str(found.reason)


def test_reads_functions_and_activations_that_work_in_place(
    make_label: Build, make_victim: Build
) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 16, 3, padding=1)
            self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1)
            self.head = nn.Linear(32 * 36, 10)

        def forward(self, images: Tensor) -> Tensor:
            hidden = torch.relu(self.first(images - 0.5))
            logits: Tensor = self.head(self.second(hidden).relu_().flatten(1))
            return logits

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Functional()
    label = make_label(10, "label-smoothing", np.random.default_rng(5))
    victim = make_victim(model, label, shape=COLOUR)
    _, found = invert(victim.leak)
    assert found.status is Status.RECOVERED, found.reason
    assert psnr_db(found, victim.image) > 100


def a_victim(make_victim: Build, make_label: Build, **options: Any) -> Any:
    label = make_label(10, "label-smoothing", np.random.default_rng(6))
    return make_victim(convolutional(RELU, nn.ReLU), label, shape=COLOUR, **options)


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"feature": None}, Status.NOT_APPLICABLE, "feature"),
        ({"feature": None}, Status.NOT_APPLICABLE, "feature"),
        ({"feature": torch.zeros(1152).double()}, Status.NOT_APPLICABLE, "is zero"),
        ({"feature": torch.ones(5).double()}, Status.NOT_APPLICABLE, "last layer's input"),
        ({"status": Status.NOT_IDENTIFIABLE, "reason": "two"}, Status.NOT_IDENTIFIABLE, "label"),
        ({"status": Status.FAILED, "reason": "it failed"}, Status.NOT_IDENTIFIABLE, "label"),
    ],
)
def test_needs_a_whole_label_recovery(
    change: dict[str, Any],
    status: Status,
    sentence: str,
    make_label: Build,
    make_victim: Build,
) -> None:
    leak = a_victim(make_victim, make_label).leak
    labels = SoftLabelRecovery()(leak, generator=torch.Generator())
    labels = LabelRecovery.of([dataclasses.replace(labels.examples[0], **change)])
    found = ReLUFit()(leak, labels, generator=torch.Generator())
    assert found.status is status
    assert sentence in str(found.reason)


def test_a_wrong_feature_is_not_claimed(make_label: Build, make_victim: Build) -> None:
    """A scale, a swap, a blend: the other layers' gradients give it away."""
    victim = a_victim(make_victim, make_label)
    labels = SoftLabelRecovery()(victim.leak, generator=torch.Generator())
    [example] = labels.examples
    x = example.feature
    assert x is not None
    for wrong in (1.5 * x, 1.001 * x, x.flip(0), x + x.roll(1)):
        claimed = LabelRecovery.of([dataclasses.replace(example, feature=wrong)])
        found = ReLUFit(starts=1)(victim.leak, claimed, generator=torch.Generator())
        check_no_claim(found)


def test_a_local_minimum_of_the_fit_is_no_claim() -> None:
    """For some of these networks the fit ends at an image that the gradients contradict."""
    claimed = 0
    for seed in range(10):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            convolution, head = nn.Conv2d(1, 4, 3, bias=False), nn.Linear(144, 5, bias=False)
        model = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), head).double()
        image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).double()
        gradients = gradients_of(model, image, torch.tensor([seed % 5]))
        leak = GradientLeak(model, gradients, 1, (1, 8, 8))
        labels = SoftLabelRecovery()(leak, generator=torch.Generator())
        found = ReLUFit()(leak, labels, generator=torch.Generator().manual_seed(0))
        if found.status == Status.RECOVERED:
            claimed += 1
            assert found.images is not None
            assert float((found.images - image).square().mean().sqrt()) < 1e-3
    assert 6 <= claimed < 10


@pytest.mark.parametrize("build", [lenet, functools.partial(convolutional, RELU, nn.ReLU)])
def test_parallel_examples_are_not_claimed(
    build: Build, make_label: Build, make_victim: Build
) -> None:
    """Equal labels make the last layer's gradient rank one, as of one example with a mean feature.

    The server isn't told that there are two.
    """
    label = make_label(10, "label-smoothing", np.random.default_rng(7)).repeat(2, 1)
    for seed in range(3):
        victim = make_victim(build(seed=seed), label, seed=seed, shape=COLOUR)
        gradients = dict(victim.leak.gradients)
        # Make it exactly rank one: the label attack then takes it for one example.
        head = list(gradients)[-1]
        left, sizes, right = torch.linalg.svd(gradients[head].double(), full_matrices=False)
        gradients[head] = sizes[0] * torch.outer(left[:, 0], right[0])
        leak = dataclasses.replace(victim.leak, gradients=gradients, batch_size=None)
        labels, found = invert(leak, attack_on(leak.model, starts=1))
        check_no_claim(found)
        assert labels.labels is None or len(labels.labels) == 1


@pytest.mark.parametrize(("factor", "recovered"), [(8, True), (40, False), (1000, False)])
def test_saturated_activations_are_not_taken_for_known(
    factor: float, recovered: bool, make_label: Build, make_victim: Build
) -> None:
    model = lenet()
    with torch.no_grad():
        for parameter in list(model.parameters())[:-1]:
            parameter.mul_(factor)
    label = make_label(10, "label-smoothing", np.random.default_rng(8))
    victim = make_victim(model, label, sent_as="float32", shape=COLOUR)
    _, found = invert(victim.leak)
    assert (found.status is Status.RECOVERED) == recovered
    if recovered:
        assert psnr_db(found, victim.image) > 50
    else:
        assert any(word in str(found.reason) for word in ("saturated", "too few"))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [({"local_steps": 2}, "2 local steps"), ({"batch_size": 4}, "found 1")],
)
def test_needs_one_step_and_a_feature_for_each_example(
    fields: dict[str, int], sentence: str, make_label: Build, make_victim: Build
) -> None:
    leak = a_victim(make_victim, make_label).leak
    labels = SoftLabelRecovery()(leak, generator=torch.Generator())
    several = dataclasses.replace(leak, **fields)
    found = ReLUFit()(several, labels, generator=torch.Generator())
    assert found.status is Status.NOT_APPLICABLE
    assert sentence in str(found.reason)


def a_batch(
    activation: Any, layers: tuple[tuple[int, int], ...], size: int, classes: int = 10
) -> tuple[GradientLeak, Tensor]:
    """Return a leak of a batch of noise images through convolutions and a hidden layer of 128."""
    model = convolutional(layers, activation, bias=True, classes=classes)
    flat = next(index for index, layer in enumerate(model) if isinstance(layer, nn.Flatten))
    width = model[-1].in_features
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(
            *model[: flat + 1], nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, classes)
        )
        images = torch.rand(size, *COLOUR)
    draws = np.random.default_rng(0)
    labels = torch.cat([draw_label(classes, "label-smoothing", draws) for _ in range(size)])
    return leak_of(model, images, labels, sent_as="float32"), images


def test_a_batch_is_one_image_at_a_time_below_its_dense_layers() -> None:
    """More examples than classes: features from a hidden layer's masks, images from these alone."""
    leak, images = a_batch(nn.ReLU, ((16, 1), (32, 1)), 12)
    labels, found = invert(leak, ReLUFit())
    assert labels.status is Status.RECOVERED, labels.reason
    assert found.status is Status.RECOVERED, found.reason
    assert found.images is not None
    error = (found.images[:, None] - images.double()).square().flatten(2).mean(2)
    assert (-10 * error.amin(0).log10()).min() > 100
    assert sorted(error.argmin(1).tolist()) == list(range(12))


def test_a_batch_shares_the_equations_of_its_gradients() -> None:
    """What one example's gradient makes up for, a batch's doesn't: the count says so."""
    leak, _ = a_batch(nn.ReLU, ((16, 2), (16, 2)), 6)
    labels, found = invert(leak, ReLUFit())
    assert labels.status is Status.RECOVERED, labels.reason
    assert set(found.statuses) == {Status.NOT_IDENTIFIABLE}
    assert "0 by its gradient" in (found.reason or "")
    assert "sum over all examples" in (found.reason or "")


def test_a_batch_below_convolutions_of_other_images_is_not_claimed() -> None:
    leak, _ = a_batch(nn.ReLU, ((16, 1), (32, 1)), 4)
    other, _ = a_batch(nn.ReLU, ((16, 1), (32, 1)), 5)
    names = list(leak.gradients)[:2]
    gradients = {n: other.gradients[n] if n in names else g for n, g in leak.gradients.items()}
    changed = dataclasses.replace(leak, gradients=gradients)
    labels, found = invert(changed, ReLUFit())
    assert labels.status is Status.RECOVERED, labels.reason
    check_no_claim(found)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm2d(16)])
def test_refuses_layers_in_train_mode(
    layer: nn.Module, make_label: Build, make_victim: Build
) -> None:
    model = convolutional(RELU, nn.ReLU)
    model.insert(2, layer)
    label = make_label(10, "hard", np.random.default_rng(9))
    leak = make_victim(model.eval(), label, shape=COLOUR).leak
    _, found = invert(dataclasses.replace(leak, mode="train"))
    assert found.status is Status.NOT_APPLICABLE
    assert "train mode" in str(found.reason)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [(None, "is missing"), (0.0, "is zero"), (torch.nan, "NaN or infinite"), (1e308, "NaN or inf")],
)
def test_needs_the_convolutions_gradients(
    value: float | None, sentence: str, make_label: Build, make_victim: Build
) -> None:
    leak = a_victim(make_victim, make_label).leak
    gradients = dict(leak.gradients)
    name = "3.weight"
    spoilt = gradients.pop(name)
    if value is not None:
        gradients[name] = torch.full_like(spoilt, value) * (10 if value == 1e308 else 1)
    _, found = invert(dataclasses.replace(leak, gradients=gradients))
    assert found.status is Status.NOT_APPLICABLE
    assert sentence in str(found.reason)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"tolerance": 0.0}, "tolerance must be above 0"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"starts": 0}, "starts must be at least 1"),
    ],
)
def test_parameters_have_ranges(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        ReLUFit(**options)


def test_the_recursion_takes_leaky_relu_too(make_label: Build, make_victim: Build) -> None:
    model = convolutional(SMOOTH, LEAKY, kernel=5)
    label = make_label(10, "label-smoothing", np.random.default_rng(10))
    victim = make_victim(model, label, shape=COLOUR)
    _, found = invert(victim.leak, RGAP())
    assert found.status is Status.RECOVERED, found.reason
    assert psnr_db(found, victim.image) > 65


@pytest.mark.parametrize(
    ("attack", "model", "sentence"),
    [
        (RGAP(), convolutional(RELU, nn.ReLU), "hides what goes into it, and the recursion"),
        (ReLUFit(), lenet(), "r-gap takes such networks"),
        (ReLUFit(), convolutional((), nn.ReLU, hidden=16), "no convolution"),
    ],
    ids=["r-gap on ReLU", "relu-fit on sigmoids", "relu-fit on linear layers"],
)
def test_each_names_the_other(
    attack: ChainInversion, model: nn.Module, sentence: str, make_label: Build, make_victim: Build
) -> None:
    label = make_label(10, "label-smoothing", np.random.default_rng(11))
    _, found = invert(make_victim(model, label, shape=COLOUR).leak, attack)
    assert found.status is Status.NOT_APPLICABLE
    assert sentence in str(found.reason)
