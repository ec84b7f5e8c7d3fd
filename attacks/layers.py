"""What an attack reads off a convolutional network: its stages, each a convolution and a curve.

A linear layer is a 1×1 convolution of a 1×1 image, so every stage is `a ↦ σ(W ∗ a + b)`. The
stages are found by running the network, not by its class: what stands between two of them has to be
one of a few activations, and that is checked on values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.network import Network, input_of
from attacks.stages import Activation, Stage
from attacks.types import GradientLeak, NotApplicable, require_known_layers

Call = tuple[nn.Conv2d | nn.Linear, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class PixelMap:
    """The affine, entrywise map `a = slope · image + offset` before the first layer, (C, H, W)."""

    slope: Tensor
    offset: Tensor

    @property
    def worth(self) -> float:
        """Error in pixels of a unit error in a, root mean square."""
        return float((1 / self.slope).square().mean().sqrt())

    def image(self, a: Tensor) -> Tensor:
        """Return the image (C, H, W) of a first input a."""
        return (a.reshape(self.slope.shape) - self.offset) / self.slope


@dataclass(frozen=True, eq=False)
class Chain:
    """A network that is a chain of stages; the last is the linear head, with no activation."""

    pixels: PixelMap
    stages: tuple[Stage, ...]

    @property
    def body(self) -> tuple[Stage, ...]:
        """The stages before the head."""
        return self.stages[:-1]

    @property
    def head(self) -> Stage:
        """The last linear layer."""
        return self.stages[-1]


def read_chain(leak: GradientLeak) -> Chain:
    """Read a leak's network as a chain of convolutions, activations and linear layers.

    Raises:
        NotApplicable: it isn't such a chain; the sentence names the first layer that breaks it.
    """
    require_known_layers(leak)
    network = Network(leak)
    images, calls, between = _run(network)
    operators = list(calls)
    if operators[-1] != network.head_name:
        raise NotApplicable(f"layer {operators[-1]!r} runs beside the last one, not before it")
    stages = []
    for name, after in zip(operators, [*operators[1:], None], strict=True):
        module, given, output = calls[name]
        activation: Activation | None = Activation("identity")
        if after is not None:
            activation = _activation_between(output, calls[after][1])
        if activation is None:
            raise NotApplicable(_gap(name, str(after), between[str(after)]))
        stages.append(_stage(name, module, given, output, activation))
    pixels = _pixel_map(images, calls[operators[0]][1], operators[0])
    return Chain(pixels, tuple(stages))


def _run(network: Network) -> tuple[Tensor, dict[str, Call], dict[str, str]]:
    """Run four images in float64.

    Returns:
        The images; each convolution's and linear layer's name -> it, its input, its output, in the
        order in which they ran; and its name -> which other layers ran since the one before it.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, *network.input_shape, generator=generator, dtype=torch.float64)
    images = torch.cat([torch.zeros_like(noise[:1]), torch.ones_like(noise[:1]), noise])
    model = copy.deepcopy(network.module).double()
    calls: dict[str, Call] = {}
    between: dict[str, str] = {}
    others: list[str] = []

    def remember(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: Any, output: Any) -> None:
            if not isinstance(module, nn.Conv2d | nn.Linear):
                others.append(f"{name!r} ({type(module).__name__})")
                return
            if name in calls:
                raise NotApplicable(f"layer {name!r} runs twice, so its gradient is a sum")
            # Clones, because an activation may work in place.
            calls[name] = (module, input_of(inputs, named).clone(), output.clone())
            between[name] = ", ".join(others)
            others.clear()

        return hook

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(remember(name), with_kwargs=True)
    with torch.no_grad():
        model(network.inputs(images))
    return images, calls, between


def _activation_between(output: Tensor, given: Tensor) -> Activation | None:
    """Find the activation that turns a layer's output into the next one's input, up to shape."""
    if output.numel() != given.numel() or len(output) != len(given):
        return None
    z, a = output.reshape(given.shape), given
    ratio = a[z < 0] / z[z < 0]
    leak = float(ratio.median()) if len(ratio) else 0.0
    candidates = [Activation("identity"), Activation("relu"), Activation("sigmoid")]
    candidates.append(Activation("tanh"))
    if 0 < leak < 1:
        candidates.append(Activation("leaky", leak))
    for activation in candidates:
        if torch.allclose(activation(z), a, rtol=1e-9, atol=1e-12):
            return activation
    return None


def _gap(name: str, after: str, layers: str) -> str:
    found = f"{layers} that this attack can't invert" if layers else "something else"
    return (
        f"between layers {name!r} and {after!r} stands {found}: it takes chains of convolutions "
        "with ReLU, leaky ReLU, sigmoid or tanh, and a linear layer at the end"
    )


def _stage(
    name: str, module: nn.Conv2d | nn.Linear, given: Tensor, output: Tensor, activation: Activation
) -> Stage:
    weight = module.weight.detach()
    bias = None if module.bias is None else module.bias.detach()
    one, none = (1, 1), (0, 0)
    size = float(given[2:].square().mean().sqrt())
    if isinstance(module, nn.Linear):
        if given.ndim != 2:
            raise NotApplicable(f"the input of the linear layer {name!r} isn't flat")
        weight = weight[:, :, None, None]
        shapes = (given.shape[1], 1, 1), (output.shape[1], 1, 1)
        return Stage(name, weight, bias, one, none, one, activation, *shapes, size)
    if module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise NotApplicable(
            f"the convolution {name!r} must have one group and zero padding given in numbers"
        )
    stride, padding, dilation = (_pair(v) for v in (module.stride, module.padding, module.dilation))
    channels, height, width = given.shape[1:]
    outputs, out_height, out_width = output.shape[1:]
    shapes = (channels, height, width), (outputs, out_height, out_width)
    return Stage(name, weight, bias, stride, padding, dilation, activation, *shapes, size)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second


def _pixel_map(images: Tensor, given: Tensor, name: str) -> PixelMap:
    message = f"what stands before layer {name!r} must act on each pixel alone, as a normalisation"
    if given.numel() != images.numel():
        raise NotApplicable(message)
    inputs = given.reshape(images.shape)
    offset, slope = inputs[0], inputs[1] - inputs[0]
    if not slope.all() or not torch.allclose(inputs[2:], slope * images[2:] + offset, atol=1e-9):
        raise NotApplicable(message)
    return PixelMap(slope, offset)
