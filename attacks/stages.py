"""A convolution and the activation after it, in float64, with the products that solvers need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d

Curve = Literal["identity", "relu", "leaky", "sigmoid", "tanh"]
Shape = tuple[int, int, int]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Activation:
    """An entrywise activation σ.

    Args:
        curve: which.
        leak: slope below zero, of "leaky"; in (0, 1).
    """

    curve: Curve
    leak: float = 0.0

    @property
    def is_piecewise(self) -> bool:
        """Whether σ is linear on each side of zero."""
        return self.curve in ("identity", "relu", "leaky")

    @property
    def is_invertible(self) -> bool:
        """Whether σ(z) determines z."""
        return self.curve != "relu"

    def __call__(self, z: Tensor) -> Tensor:
        """Return σ(z)."""
        match self.curve:
            case "sigmoid":
                return z.sigmoid()
            case "tanh":
                return z.tanh()
            case "identity":
                return z
            case _:
                return torch.where(z > 0, z, self.leak * z)

    def inverse(self, a: Tensor) -> Tensor:
        """Return z with σ(z) = a; infinite at the ends of the range."""
        match self.curve:
            case "sigmoid":
                return a.logit()
            case "tanh":
                return a.atanh()
            case "identity":
                return a
            case _:
                return torch.where(a > 0, a, a / self.leak)

    def slope(self, a: Tensor) -> Tensor:
        """Return σ'(z) as a function of a = σ(z)."""
        match self.curve:
            case "sigmoid":
                return a * (1 - a)
            case "tanh":
                return (1 - a) * (1 + a)
            case "identity":
                return torch.ones_like(a)
            case _:
                return torch.where(a > 0, 1.0, self.leak).to(a)

    def bend(self, a: Tensor) -> Tensor:
        """Return the derivative of `slope` by a; zero where σ is linear on each side."""
        match self.curve:
            case "sigmoid":
                return 1 - 2 * a
            case "tanh":
                return -2 * a
            case _:
                return torch.zeros_like(a)


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
