"""A convolutional network as its stages, each a convolution and the activation after it.

A linear layer is a 1×1 convolution of a 1×1 image, so every stage is `a ↦ σ(W ∗ a + b)`. The
stages are found by running the network, not by its class: what stands between two of them has to be
one of a few activations, and that is checked on values.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d

from attacks.types import GradientLeak, NotApplicable
from attacks.victim.activation import IDENTITY, Activation, recognise
from attacks.victim.network import Network
from attacks.victim.pixel_map import PixelMap
from attacks.victim.require import require_known_layers
from attacks.victim.trace import Call

Shape = tuple[int, int, int]
Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Stage:
    """A convolution `z = W ∗ a + b` and the activation after it, in float64.

    Args:
        name: of the layer in the network.
        weight: (O, C, kh, kw).
        bias: (O,) or None.
        stride: of the convolution.
        padding: with zeros.
        dilation: of the kernel.
        activation: σ.
        input_shape: (C, H, W).
        output_shape: (O, H', W').
        input_size: what its input's entries are on noise images, root mean square.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair
    activation: Activation
    input_shape: Shape
    output_shape: Shape
    input_size: float

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear layer, or as good as one: its input is one place."""
        return self.input_shape[1:] == self.weight.shape[2:] == (1, 1)

    def linear(self, a: Tensor) -> Tensor:
        """Return W ∗ a, (N, O, H', W'), for a (N, …) of the input's size."""
        a = a.reshape(-1, *self.input_shape)
        return conv2d(a, self.weight, None, self.stride, self.padding, self.dilation)

    def adjoint(self, z: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return Wᵀ ∗ z, (N, C, H, W), for z (N, …) of the output's size; of another W if given."""
        weight = self.weight if weight is None else weight
        z = z.reshape(-1, *self.output_shape)
        rest = [
            size - ((out - 1) * step - 2 * pad + hole * (kernel - 1) + 1)
            for size, out, step, pad, hole, kernel in zip(
                self.input_shape[1:],
                self.output_shape[1:],
                self.stride,
                self.padding,
                self.dilation,
                weight.shape[2:],
                strict=True,
            )
        ]
        return conv_transpose2d(z, weight, None, self.stride, self.padding, rest, 1, self.dilation)

    def preactivation(self, a: Tensor) -> Tensor:
        """Return z = W ∗ a + b."""
        z = self.linear(a)
        return z if self.bias is None else z + self.bias[:, None, None]

    def patches(self, delta: Tensor) -> Tensor:
        """Return D (O·kh·kw, H·W), with `∂L/∂W[:, c] = D a_c` for each input channel c.

        Args:
            delta: ∂L/∂z, (O, H', W').
        """
        outputs, _, height, width = self.weight.shape
        # The adjoint of a kernel that is 1 in one entry spreads δ to where that entry reads.
        kernels = torch.eye(outputs * height * width, dtype=delta.dtype)
        kernels = kernels.reshape(-1, outputs, height, width).transpose(0, 1)
        return self.adjoint(delta, kernels).reshape(outputs * height * width, -1)


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
    network = Network.of(leak)
    twice = next((name for name, runs in network.runs.items() if runs > 1), None)
    if twice is not None:
        raise NotApplicable(f"layer {twice!r} runs twice, so its gradient is a sum")
    calls = network.trace
    if calls[-1].name != network.head_name:
        raise NotApplicable(f"layer {calls[-1].name!r} runs beside the last one, not before it")
    stages = [_stage(one, _activation(one, after)) for one, after in pairwise(calls)]
    pixels = PixelMap.of(network, calls[0].name)
    return Chain(pixels, (*stages, _stage(calls[-1], IDENTITY)))


def _activation(one: Call, after: Call) -> Activation:
    """Return what stands between two layers.

    Raises:
        NotApplicable: it is none of the activations that are known.
    """
    found = recognise(one.output, after.given)
    if found is None:
        layers = after.between or "something else"
        raise NotApplicable(
            f"between layers {one.name!r} and {after.name!r} stands {layers} that this attack "
            "can't invert: it takes chains of convolutions with ReLU, leaky ReLU, ELU, sigmoid, "
            "tanh or softplus, and a linear layer at the end"
        )
    return found


def _stage(call: Call, activation: Activation) -> Stage:
    name, module, given, output = call.name, call.module, call.given, call.output
    weight = module.weight.detach().double()
    bias = None if module.bias is None else module.bias.detach().double()
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
