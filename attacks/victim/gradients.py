"""A layer's gradient as it came: read in one place, by one rule for what counts as a number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attacks.types import GradientLeak, NotApplicable
from attacks.victim.network import Network, parameter_name

Array = NDArray[np.float64]
Matrix = NDArray[Any]
HUGE = 1e60
"""Beyond it, and below its inverse, fourth powers leave float64's range."""


def read_gradient(leak: GradientLeak, name: str, layer: str, *, may_vanish: bool = False) -> Tensor:
    """Return a parameter's gradient as it came; of 16 bits, in float32.

    Args:
        leak: what is attacked.
        name: the parameter's.
        layer: the layer in words, for the sentence.
        may_vanish: whether it may be zero.

    Raises:
        NotApplicable: it is missing, not finite, so large that squares overflow, or zero.
    """
    if name not in leak.gradients:
        raise NotApplicable(f"the gradient of {layer}, {name!r}, is missing")
    gradient = leak.gradients[name].detach()
    if torch.finfo(gradient.dtype).bits < 32:
        gradient = gradient.float()
    low, high = gradient.aminmax()
    size = max(-float(low), float(high))  # of NaN, no comparison holds
    if not size < min(HUGE, torch.finfo(gradient.dtype).max ** 0.5):
        raise NotApplicable(f"the gradient of {layer}, {name!r}, has NaN or infinite entries")
    if not (size > 1 / HUGE or may_vanish):
        raise NotApplicable(f"the gradient of {layer}, {name!r}, is zero")
    return gradient


def has_layer_gradient(leak: GradientLeak, network: Network, name: str) -> bool:
    """Say whether a linear layer's gradient is there, and is a sum over the examples alone."""
    parameter = parameter_name(name, "weight")
    return parameter in leak.gradients and name in network.flat and network.runs[name] == 1


def parameters_of(network: Network, name: str) -> tuple[str, ...]:
    """Return the names of a linear layer's weight and bias, as far as it has them."""
    # By these names: a reparametrised weight has other parameters, whose gradients aren't its.
    layer = network.linear[name]
    own = [part for part in ("weight", "bias") if getattr(layer, part) is not None]
    return tuple(parameter_name(name, part) for part in own)


def read_head(leak: GradientLeak, network: Network) -> tuple[Tensor, Tensor | None]:
    """Return the gradient (K, D) of the last layer's weight, and that (K,) of its bias.

    Raises:
        NotApplicable: one that the layer has is missing, not finite or zero.
    """
    weight, *bias = _read_parts(leak, network, network.head_name)
    return weight, bias[0] if bias else None


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer `z = W a + b`, with `∂L/∂[W b]`, in float64.

    Args:
        name: of its module.
        weight: (m, n), or (m, n+1) with the bias as the last column.
        gradient: of that shape.
        rounding: of that shape, standard deviations of what float rounding does to the gradient.
        has_bias: whether the last column is the bias.
        eps: unit roundoff of the precision that the client computed in.
        is_coarse: whether the gradient, or the weights that it was taken from, have 16 bits.
    """

    name: str
    weight: Array
    gradient: Array
    rounding: Array
    has_bias: bool
    eps: float
    is_coarse: bool

    @classmethod
    def of(
        cls, leak: GradientLeak, network: Network, name: str, *, may_vanish: bool = False
    ) -> Layer:
        """Take a linear layer with its gradient out of a leak.

        Args:
            leak: whose gradient.
            network: a view of its model.
            name: of the layer.
            may_vanish: whether the gradient may be zero.

        Raises:
            NotApplicable: the gradient is missing, not finite, or zero.
        """
        module = network.linear[name]
        names = parameters_of(network, name)
        return cls(
            name,
            _columns([getattr(module, part.rpartition(".")[2]) for part in names]),
            _columns(_read_parts(leak, network, name, may_vanish=may_vanish)),
            _columns([leak.rounding(part) for part in names]),
            has_bias=len(names) == 2,
            eps=float(torch.finfo(module.weight.dtype).eps),
            is_coarse=leak.is_coarse(names),
        )

    @property
    def weights(self) -> Array:
        """W without the bias, (m, n)."""
        return self.weight[:, : self.weight.shape[1] - self.has_bias]

    def only(self, columns: NDArray[np.bool_]) -> Layer:
        """Return the layer with some of its columns alone."""
        parts = (part[:, columns] for part in (self.weight, self.gradient, self.rounding))
        weight, gradient, rounding = parts
        return replace(self, weight=weight, gradient=gradient, rounding=rounding)

    def rescaled(self, factor: float) -> Layer:
        """Return the layer with a gradient that a factor was on, without it."""
        if factor == 1:
            return self
        return replace(self, gradient=self.gradient / factor, rounding=self.rounding / factor)

    def augmented(self, a: Array) -> Array:
        """Return inputs (B, n), with a constant 1 behind them if there is a bias."""
        return np.hstack([a, np.ones((len(a), 1))]) if self.has_bias else a


def _read_parts(
    leak: GradientLeak, network: Network, name: str, *, may_vanish: bool = False
) -> list[Tensor]:
    """Return the gradients of a layer's weight and bias, of which one may be zero.

    Raises:
        NotApplicable: one is missing or not finite, or all are zero.
    """
    names = parameters_of(network, name)
    words = "the last layer" if name == network.head_name else f"layer {name!r}"
    parts = [read_gradient(leak, part, words, may_vanish=True) for part in names]
    if not (may_vanish or any(part.any() for part in parts)):
        raise NotApplicable(f"the gradient of {words}, {names[0]!r}, is zero")
    return parts


def as_double(tensor: Tensor) -> Array:
    """Return a tensor's values in float64; a view where they are."""
    return np.asarray(tensor.detach().double().numpy())


def as_numpy(tensor: Tensor) -> Matrix:
    """Return a view, or of bfloat16, which NumPy doesn't have, a float32 copy."""
    detached = tensor.detach()
    array: Matrix = (detached.float() if detached.dtype is torch.bfloat16 else detached).numpy()
    return array


def _columns(parts: list[Tensor]) -> Array:
    return np.hstack([as_double(part).reshape(len(part), -1) for part in parts])
