"""A fully connected network as its layers, with the gradient of each: what `analytic` unrolls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from attacks.last_layer import HUGE
from attacks.network import Network, input_of, parameter_name
from attacks.rank_one import Array
from attacks.types import GradientLeak, NotApplicable

PROBES = 8
"""Random images on which activations are recognised."""


@dataclass(frozen=True, eq=False)
class Activation:
    """An activation `a = σ(z)` whose slope can be read off its output.

    Args:
        name: in words.
        apply: σ.
        slope: a -> σ'(z).
        low: for a piecewise linear one, the slope below zero (1 above); None for a smooth one.
    """

    name: str
    apply: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    low: float | None = None

    @classmethod
    def piecewise(cls, low: float) -> Activation:
        """Return ReLU (low 0), leaky ReLU, or the identity (low 1)."""
        return cls(
            f"max(z, {low:g} z)",
            lambda z: np.where(z > 0, z, low * z),
            lambda a: np.where(a > 0, 1.0, low),
            low,
        )

    @classmethod
    def recognise(cls, z: Array, a: Array) -> Activation | None:
        """Return the activation that maps z to a, entry by entry; None if none of ours does."""
        negative = z < 0
        ratio = float(np.median(a[negative] / z[negative])) if negative.any() else 0.0
        below = float(np.median(a[negative] / np.expm1(z[negative]))) if negative.any() else 1.0
        candidates = [cls.piecewise(0.0), *_smooth(below)]
        if 0 < ratio <= 1:
            candidates.append(cls.piecewise(ratio))
        return next((c for c in candidates if np.allclose(c.apply(z), a, 1e-9, 1e-12)), None)


def _smooth(below: float) -> list[Activation]:
    elu = Activation(
        "ELU",
        lambda z: np.where(z > 0, z, below * np.expm1(np.minimum(z, 0))),
        lambda a: np.where(a > 0, 1.0, a + below),
    )
    return [
        Activation("sigmoid", lambda z: np.asarray(expit(z)), lambda a: a * (1 - a)),
        Activation("tanh", np.tanh, lambda a: 1 - a**2),
        Activation("softplus", lambda z: np.logaddexp(0, z), lambda a: -np.expm1(-a)),
        elu,
    ]


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer `z = W a + b`, with `∂L/∂[W b]`.

    Args:
        name: of its module.
        weight: (m, n), or (m, n+1) with the bias as the last column.
        gradient: of that shape.
        rounding: of that shape, standard deviations of what float rounding does to the gradient.
        has_bias: whether the last column is the bias.
        eps: unit roundoff of the precision that the client computed in.
    """

    name: str
    weight: Array
    gradient: Array
    rounding: Array
    has_bias: bool
    eps: float

    @classmethod
    def of(cls, leak: GradientLeak, network: Network, name: str) -> Layer:
        """Take a linear layer with its gradient out of a leak, in float64.

        Raises:
            NotApplicable: the gradient is missing, not finite, or zero.
        """
        module = network.linear[name]
        parts = ["weight"] if module.bias is None else ["weight", "bias"]
        columns: dict[str, list[Array]] = {"weight": [], "gradient": [], "rounding": []}
        for part in parts:
            full = parameter_name(name, part)
            if full not in leak.gradients:
                raise NotApplicable(f"the gradient of {full!r} is missing")
            gradient = leak.gradients[full].detach().double()
            found = {
                "weight": getattr(module, part).detach().double(),
                "gradient": gradient,
                "rounding": leak.rounding(full),
            }
            for key, value in found.items():
                columns[key].append(value.reshape(len(value), -1).numpy())
        stacked = {key: np.hstack(value) for key, value in columns.items()}
        eps = float(torch.finfo(module.weight.dtype).eps)
        layer = cls(name, **stacked, has_bias=module.bias is not None, eps=eps)
        if not np.abs(layer.gradient).max() < HUGE:
            raise NotApplicable(f"the gradient of layer {name!r} has NaN or infinite entries")
        if not np.abs(layer.gradient).max() > 1 / HUGE:
            raise NotApplicable(f"the gradient of layer {name!r} is zero")
        return layer

    @property
    def weights(self) -> Array:
        """W without the bias, (m, n)."""
        return self.weight[:, : self.weight.shape[1] - self.has_bias]

    def rescaled(self, factor: float) -> Layer:
        """Return the layer with a gradient that a factor was on, without it."""
        if factor == 1:
            return self
        gradient, rounding = self.gradient / factor, self.rounding / factor
        return dataclasses.replace(self, gradient=gradient, rounding=rounding)

    def augmented(self, a: Array) -> Array:
        """Return inputs (B, n), with a constant 1 behind them if there is a bias."""
        return np.hstack([a, np.ones((len(a), 1))]) if self.has_bias else a


@dataclass(frozen=True, eq=False)
class FullyConnected:
    """Linear layers with activations between them.

    Args:
        layers: from the image to the logits, at least one.
        activations: behind each layer but the last.
    """

    layers: tuple[Layer, ...]
    activations: tuple[Activation, ...]

    @classmethod
    def of(cls, leak: GradientLeak, network: Network) -> FullyConnected:
        """Take a network apart and test on random images that this is all there is.

        Raises:
            NotApplicable: it isn't of this kind, or a gradient is missing, not finite, or zero.
        """
        names = network.executed
        odd = next((n for n in names if n not in network.flat or network.runs[n] > 1), None)
        if odd is not None:
            raise NotApplicable(
                f"the linear layer {odd!r} runs more than once or takes several rows for each "
                "image, so its gradient is a sum over these"
            )
        own = {parameter_name(name, part) for name in names for part in ("weight", "bias")}
        other = [name for name, _ in network.module.named_parameters() if name not in own]
        if other:
            raise NotApplicable(
                f"parameter {other[0]!r} belongs to no linear layer; a batch is inverted through "
                "fully connected networks only"
            )
        inputs, outputs = _trace(network)
        activations = []
        for before, after in pairwise(names):
            fits = outputs[before].shape == inputs[after].shape
            found = Activation.recognise(outputs[before], inputs[after]) if fits else None
            if found is None:
                raise NotApplicable(
                    f"between layers {before!r} and {after!r} stands something else than a "
                    "ReLU-like or an invertible activation"
                )
            activations.append(found)
        layers = tuple(Layer.of(leak, network, name) for name in names)
        whole = cls(layers, tuple(activations))
        logits = whole.forward(inputs[names[0]])[-1]
        if not np.allclose(logits, outputs[names[-1]], 1e-9, 1e-9):
            raise NotApplicable("the network isn't a chain of its linear layers")
        return whole

    def rescaled(self, factor: float) -> FullyConnected:
        """Return the network with gradients that a factor was on, without it."""
        layers = tuple(layer.rescaled(factor) for layer in self.layers)
        return dataclasses.replace(self, layers=layers)

    @cached_property
    def is_homogeneous(self) -> bool:
        """Whether `f(s a) = s f(a)` for s > 0, up to the last layer's input."""
        biased = any(layer.has_bias for layer in self.layers[:-1])
        return not biased and all(a.low is not None for a in self.activations)

    def forward(self, a: Array) -> list[Array]:
        """Return each layer's input on first inputs (B, n), and the logits last."""
        values = [a]
        for index, layer in enumerate(self.layers):
            z = layer.augmented(values[-1]) @ layer.weight.T
            last = index == len(self.activations)
            values.append(z if last else self.activations[index].apply(z))
        return values


def _trace(network: Network) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the linear layers' inputs and outputs on random images, in float64."""
    inputs: dict[str, Array] = {}
    outputs: dict[str, Array] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(module: Any, given: tuple[Any, ...], named: Any, output: Tensor) -> None:
            inputs[name] = input_of(given, named).flatten(1).numpy()
            outputs[name] = output.flatten(1).numpy()

        return hook

    draws = torch.Generator().manual_seed(0)
    images = torch.rand(PROBES, *network.input_shape, generator=draws, dtype=torch.float64)
    handles = [
        module.register_forward_hook(remember(name), with_kwargs=True)
        for name, module in network.linear.items()
    ]
    network.run(images, network.double())
    for handle in handles:
        handle.remove()
    return inputs, outputs
