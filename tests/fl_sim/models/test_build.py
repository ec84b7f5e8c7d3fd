"""Every network keeps the contract, and `build_model` says what is wrong with one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from fl_sim import MODELS
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


OWN = {"lenet": ("dlg",), "vgg11": ("torchvision",)}
"""What a network's weights may be beside PyTorch's and He's."""


@pytest.mark.parametrize("name", list(MODELS))
def test_every_initialisation_is_its_own_and_finite(name: str) -> None:
    images = torch.rand(2, *COLOUR, generator=torch.Generator().manual_seed(0))
    seen = []
    for init in ("default", "he", *OWN.get(name, ())):
        model = build(name, COLOUR, bias=True, init=init)
        assert model(images).isfinite().all()
        seen.append(linear_layers(model)[-1].weight)
    assert not any(torch.equal(a, b) for a, b in combinations(seen, 2))
    assert torch.equal(linear_layers(build(name, COLOUR, bias=True))[-1].weight, seen[0])


@pytest.mark.parametrize("name", list(MODELS))
def test_he_initialisation(name: str) -> None:
    layers = [
        layer
        for layer in build(name, COLOUR, bias=True, init="he").modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    for layer in layers:
        count, inputs = layer.weight.numel(), layer.weight[0].numel()
        # five standard errors of the estimate
        near = pytest.approx((2 / inputs) ** 0.5, rel=5 * (2 * count) ** -0.5)
        assert layer.weight.std().item() == near
        assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet18"])
def test_the_default_is_pytorchs(name: str) -> None:
    for layer in build(name, COLOUR, bias=True).modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = layer.weight[0].numel() ** -0.5
            assert layer.weight.abs().max() <= bound and layer.bias.abs().max() <= bound
            # uniform: five standard errors of the mean square, 2/√(5N) of it
            spread = layer.weight.square().mean().item()
            assert spread == pytest.approx(
                bound**2 / 3, rel=5 * (0.8 / layer.weight.numel()) ** 0.5
            )
            assert layer.bias.any()


@pytest.mark.parametrize("name", list(MODELS))
def test_an_initialisation_that_a_network_does_not_know_is_named(name: str) -> None:
    known = ", ".join(map(repr, ("default", "he", *OWN.get(name, ()))[:-1]))
    last = ("he", *OWN.get(name, ()))[-1]
    message = f"model '{name}': init must be {known} or '{last}', found 'xavier'"
    with pytest.raises(UserError) as caught:
        build(name, init="xavier")
    assert str(caught.value) == message


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
        ("lenet5", GREY, [400, 120, 84, 10]),
        ("lenet5", COLOUR, [576, 120, 84, 10]),
        ("convnet", COLOUR, [64 * 16 * 16, 10]),
        ("vgg11", COLOUR, [512, 512, 512, 10]),
        ("resnet18", COLOUR, [512, 10]),
    ],
)
def test_widths(name: str, shape: tuple[int, int, int], widths: list[int]) -> None:
    layers = linear_layers(build(name, shape))
    assert [layers[0].in_features, *(layer.out_features for layer in layers)] == widths


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


def orthogonal(*, num_classes: int, init: str = "orthogonal") -> nn.Module:
    """Have an initialisation of its own."""
    linear = nn.Linear(784, num_classes, bias=False)
    nn.init.orthogonal_(linear.weight) if init == "orthogonal" else nn.init.ones_(linear.weight)
    return nn.Sequential(nn.Flatten(), linear)


def test_a_third_partys_initialisation_is_left_to_it_unless_one_is_asked_for() -> None:
    own, asked = (
        linear_layers(build(f"{__name__}:orthogonal", init=init))[0].weight
        for init in ("default", "ones")
    )
    assert torch.allclose(own @ own.T, torch.eye(10), atol=1e-5)  # float32
    assert torch.equal(asked, torch.ones(10, 784))


def test_what_a_factory_has_no_parameter_for_must_be_left_alone() -> None:
    name = f"{__name__}:demanding"
    for changes, message in (
        ({"bias": True}, "model.bias: must be false, since .*:demanding has no .*, found true"),
        ({"init": "he"}, "model.init: must be 'default', since .*:demanding has no .*, found 'he'"),
    ):
        with pytest.raises(UserError, match=message):
            build(name, options={"depth": 1}, **changes)


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
        ("fcn4", {"init": "he"}, "can't set 'init'"),
        (f"{__name__}:constant", {}, "must be an nn.Module, found function"),
        (f"{__name__}:Foreign", {"width": 3}, r"of \(2, 10\), found shape \(2, 3\)"),
        (f"{__name__}:Foreign", {"value": float("nan")}, "found NaN or infinity"),
        (f"{__name__}:Picky", {}, r"must map \(2, 1, 28, 28\) .* raised RuntimeError"),
        (f"{__name__}:Tuple", {}, "found tuple"),
        (
            f"{__name__}:demanding",
            {},
            "depth is required; it gets what it takes of num_classes, input_shape, bias, mean, "
            "std, init, and model.options",
        ),
    ],
)
def test_build_model_refuses(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, options=options)


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
