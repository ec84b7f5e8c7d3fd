"""Tests of the networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from fl_sim import MODELS
from fl_sim.data import photos
from fl_sim.errors import UserError
from fl_sim.models import Normalize, build_model

GREY, COLOUR, LARGE = (1, 28, 28), (3, 32, 32), (3, 64, 64)


def build(name: str, shape: tuple[int, int, int] = GREY, **changes: Any) -> nn.Module:
    arguments: dict[str, Any] = {
        "options": {},
        "num_classes": 10,
        "input_shape": shape,
        "bias": False,
        "mean": (0.4,) * shape[0],
        "std": (0.2,) * shape[0],
        "seed": 0,
    }
    return build_model(name, **(arguments | changes))


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("shape", [GREY, COLOUR, LARGE, (3, 33, 45)])
@pytest.mark.parametrize("name", list(MODELS))
def test_maps_pixels_to_logits(name: str, shape: tuple[int, int, int]) -> None:
    model = build(name, shape, num_classes=7)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    images = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    logits = model(images)
    assert logits.shape == (3, 7) and logits.isfinite().all()
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", list(MODELS))
def test_normalises_first_and_keeps_that_out_of_the_state(name: str) -> None:
    model = build(name, COLOUR, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    first = next(layer for layer in model.modules() if not list(layer.children()))
    assert isinstance(first, Normalize)
    # one rounding to float32
    assert torch.allclose(first(torch.ones(1, 3, 1, 1)).flatten(), torch.tensor([1.8, 3.2, 5.6]))
    assert not any(key.startswith("0.") for key in model.state_dict())


@pytest.mark.parametrize("name", list(MODELS))
def test_bias_toggles(name: str) -> None:
    biased = {
        bias: [f.bias is not None for f in linear_layers(build(name, bias=bias))]
        for bias in (True, False)
    }
    assert all(biased[True]) and not any(biased[False])


@pytest.mark.parametrize("name", list(MODELS))
def test_every_parameter_has_a_gradient(name: str) -> None:
    model = build(name, COLOUR, bias=True)
    images = torch.rand(2, *COLOUR, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(model(images), torch.tensor([1, 2])).backward()
    dead = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("name", list(MODELS))
def test_function_transforms_apply(name: str) -> None:
    """No layer works in place on what a transform must see."""
    model = build(name)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        output: Tensor = functional_call(model, parameters, torch.zeros(1, *GREY))
        return output.square().sum()

    gradients = grad(loss)(dict(model.named_parameters()))
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert not any(getattr(layer, "inplace", False) for layer in model.modules())


@pytest.mark.parametrize("name", list(MODELS))
def test_the_seed_alone_decides_and_the_global_generator_stays(name: str) -> None:
    before = torch.get_rng_state()
    first = build(name, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.rand(1)
        again, other = build(name, seed=1).state_dict(), build(name, seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "shape", "widths"),
    [
        ("fcn4", GREY, [784, 256, 128, 64, 10]),
        ("fcn4", COLOUR, [3072, 1024, 256, 64, 10]),
        ("fcn4", LARGE, [12288, 4096, 1024, 256, 10]),
        ("mlp", GREY, [784, 512, 512, 10]),
        ("lenet", GREY, [588, 10]),
        ("lenet", COLOUR, [768, 10]),
        ("convnet", COLOUR, [64 * 16 * 16, 10]),
        ("resnet18", COLOUR, [512, 10]),
    ],
)
def test_widths(name: str, shape: tuple[int, int, int], widths: list[int]) -> None:
    layers = linear_layers(build(name, shape))
    assert [layers[0].in_features, *(layer.out_features for layer in layers)] == widths


@pytest.mark.parametrize("name", ["fcn4", "mlp"])
def test_he_initialisation(name: str) -> None:
    for layer in linear_layers(build(name, LARGE, bias=True))[:-1]:
        # at least 256×1024 weights: the estimate's standard error is 0.14 %; five of them
        assert layer.weight.std().item() == pytest.approx((2 / layer.in_features) ** 0.5, rel=7e-3)
        assert not layer.bias.any()


def test_lenet_is_initialised_as_in_the_paper() -> None:
    for parameter in build("lenet", bias=True).parameters():
        assert parameter.abs().max() <= 0.5
    weights = linear_layers(build("lenet"))[0].weight
    # uniform in ±0.5 has this deviation; the standard error over 5,880 weights is 0.6 %
    assert weights.std().item() == pytest.approx(12**-0.5, rel=0.03)


@pytest.mark.parametrize(("shape", "kernel", "pooled"), [(COLOUR, 3, False), (LARGE, 7, True)])
def test_resnet18_stem(shape: tuple[int, int, int], kernel: int, pooled: bool) -> None:
    network = build("resnet18", shape)[1]
    assert network.conv1.kernel_size == (kernel, kernel)
    assert isinstance(network.maxpool, nn.MaxPool2d) is pooled


@pytest.mark.parametrize("lr", [0.01, 0.1])
def test_resnet18_trains_with_frozen_batch_norm(lr: float) -> None:
    """Five federated rounds, 10 clients with one photograph each."""
    dataset = photos(size=32)
    model = build("resnet18", COLOUR, num_classes=8, mean=dataset.mean, std=dataset.std)
    for first in range(0, 50, 10):
        images, labels = dataset.images[first : first + 10], dataset.labels[first : first + 10]
        logits = model(images)
        # Uniform output has 0.125 and a loss of 2.08; the largest seen over 3 seeds: 0.37 and 2.4.
        assert logits.softmax(-1).max() < 0.7
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        assert loss < 3
        # The mean of one-step, one-example updates is one step on the mean gradient.
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= lr * gradient


def constant(**_: Any) -> Callable[[Tensor], Tensor]:
    return lambda images: images


class Foreign(nn.Module):
    """A third party's model: zeros of a shape of its choosing, or NaN."""

    def __init__(self, width: int = 10, value: float = 0.0, **_: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), value, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        """Return the weight, whatever the images."""
        return self.weight.expand(len(images), -1)


class Picky(Foreign):
    """A model that needs another shape."""

    def forward(self, images: Tensor) -> Tensor:
        """Multiply rows of five."""
        return F.linear(images, torch.zeros(1, 5))


class Tuple(Foreign):
    """A model that doesn't return a tensor."""

    def forward(self, images: Tensor) -> Any:
        """Return the images in a tuple."""
        return (images,)


def test_a_third_partys_model_is_made_float32_and_eval() -> None:
    model = build(f"{__name__}:Foreign", options={"width": 10})
    assert not model.training and next(model.parameters()).dtype == torch.float32


def demanding(*, num_classes: int, depth: int) -> nn.Module:
    """Ask for more than a scenario says."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))


def test_what_a_factory_asks_for_beyond_that_stands_in_the_options() -> None:
    with torch.random.fork_rng():
        assert isinstance(build(f"{__name__}:demanding", options={"depth": 1}), nn.Sequential)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fcn5", {}, "did you mean 'fcn4'"),
        ("fcn4", {"depth": 5}, "'fcn4': .*depth"),
        ("fcn4", {"bias": True}, "can't set 'bias'"),
        (f"{__name__}:constant", {}, "must be an nn.Module, found function"),
        (f"{__name__}:Foreign", {"width": 3}, r"of \(2, 10\), found shape \(2, 3\)"),
        (f"{__name__}:Foreign", {"value": float("nan")}, "found NaN or infinity"),
        (f"{__name__}:Picky", {}, r"must map \(2, 1, 28, 28\) .* raised RuntimeError"),
        (f"{__name__}:Tuple", {}, "found tuple"),
        (
            f"{__name__}:demanding",
            {},
            "depth is required; it gets what it takes of num_classes, input_shape, bias, mean, "
            "std, and model.options",
        ),
    ],
)
def test_build_model_refuses(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, options=options)


@pytest.mark.parametrize(("mean", "std"), [((0.1, 0.2), (1.0,)), ((0.1,), (0.0,))])
def test_normalize_refuses(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="std above 0, found"):
        Normalize(mean, std)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("third_party:own", nn.Sequential),
        ("third_party:fixed", nn.Sequential),
        ("third_party:Tempered", nn.Module),
    ],
)
def test_anyones_factory_gets_the_keywords_that_it_takes(
    name: str, kind: type, tiny_file: Path
) -> None:
    model = build_model(
        name,
        options={},
        num_classes=4,
        input_shape=(1, 4, 4),
        bias=name == "third_party:Tempered",  # which takes anything
        mean=(0.5,),
        std=(0.5,),
        seed=0,
    )
    assert isinstance(model, kind)


def test_torchvisions_factories_are_among_them() -> None:
    arguments: dict[str, Any] = {"num_classes": 5, "bias": False, "mean": (0.5,), "std": (0.5,)}
    name = "torchvision.models:squeezenet1_1"
    model = build_model(name, options={}, input_shape=(3, 32, 32), seed=0, **arguments)
    assert type(model).__name__ == "SqueezeNet"
    with pytest.raises(UserError, match=r"must map \(2, 1, 32, 32\) .* raised RuntimeError: Given"):
        build_model(name, options={}, input_shape=(1, 32, 32), seed=0, **arguments)
