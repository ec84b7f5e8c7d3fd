"""A fully connected network as its layers, with the gradient of each: what `analytic` unrolls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from attacks.types import GradientLeak, NotApplicable
from attacks.victim.activation import Activation, recognise
from attacks.victim.gradients import Array, Layer, as_double
from attacks.victim.network import Network, parameter_name
from attacks.victim.trace import Call


@dataclass(frozen=True, eq=False)
class FullyConnected:
    """Linear layers with activations between them.

    Args:
        layers: from the image to the logits, at least one.
        activations: behind each layer but the last.
        kept: share of their outputs that the client's dropout left; empty where there was none.
        ends_in_logits: whether the last layer's outputs are logits, whose errors sum to 0.
    """

    layers: tuple[Layer, ...]
    activations: tuple[Activation, ...]
    kept: tuple[float, ...] = ()
    ends_in_logits: bool = True

    @classmethod
    def of(
        cls, leak: GradientLeak, network: Network, *, may_vanish: bool = False
    ) -> FullyConnected:
        """Take a network apart and test on random images that this is all there is.

        Args:
            leak: whose gradients the layers get.
            network: a view of its model.
            may_vanish: whether a layer's gradient may be zero.

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
        return cls.above(leak, network, names[0], may_vanish=may_vanish)

    @classmethod
    def above(
        cls,
        leak: GradientLeak,
        network: Network,
        first: str,
        last: str | None = None,
        *,
        may_vanish: bool = False,
    ) -> FullyConnected:
        """Take the part of a network from one linear layer to the logits, or to another layer.

        Args:
            leak: whose gradients the layers get.
            network: a view of its model.
            first: the layer's name.
            last: the other one's; None: the one whose outputs are the logits.
            may_vanish: whether a layer's gradient may be zero.

        Raises:
            NotApplicable: it isn't a chain of linear layers with activations between them, or a
                gradient is missing, not finite, or zero.
        """
        calls = network.trace
        names = [call.name for call in calls]
        end = len(calls) if last is None else names.index(last) + 1
        calls = calls[names.index(first) : end]
        odd = next((c.name for c in calls if c.name not in network.flat), None)
        if odd is not None or any(network.runs[call.name] > 1 for call in calls):
            raise NotApplicable(f"above {first!r} the network isn't a chain of linear layers")
        activations = tuple(_activation(one, after) for one, after in pairwise(calls))
        kept = tuple(call.kept for call in calls[1:]) if leak.mode == "train" else ()
        layers = tuple(Layer.of(leak, network, c.name, may_vanish=may_vanish) for c in calls)
        chain = cls(layers, activations, kept, ends_in_logits=last is None)
        logits = chain.forward(as_double(calls[0].given))[-1]
        if not np.allclose(logits, as_double(calls[-1].output), 1e-9, 1e-9):
            raise NotApplicable("the network isn't a chain of its linear layers")
        return chain

    def rescaled(self, factor: float) -> FullyConnected:
        """Return the network with gradients that a factor was on, without it."""
        layers = tuple(layer.rescaled(factor) for layer in self.layers)
        return dataclasses.replace(self, layers=layers)

    @cached_property
    def is_homogeneous(self) -> bool:
        """Whether `f(s a) = s f(a)` for s > 0, up to the last layer's input."""
        biased = any(layer.has_bias for layer in self.layers[:-1])
        return not biased and all(a.low is not None for a in self.activations)

    @cached_property
    def first_bias(self) -> int | None:
        """The index of the first layer with a bias; None without any."""
        return next((i for i, layer in enumerate(self.layers) if layer.has_bias), None)

    def forward(self, a: Array, *dropped: Array | None) -> list[Array]:
        """Return each layer's input on first inputs (B, n), and the logits last.

        Args:
            a: (B, n).
            dropped: what dropout made of the outputs of the first layer, the second, …, factors
                (B, m); None for nothing, as where they end.
        """
        values = [a]
        for index, layer in enumerate(self.layers):
            z = layer.augmented(values[-1]) @ layer.weight.T
            last = index == len(self.activations)
            values.append(z if last else on_array(self.activations[index], z))
            factors = dropped[index] if index < len(dropped) else None
            if factors is not None:
                values[-1] = values[-1] * factors
        return values

    def above_layer(self, index: int) -> FullyConnected:
        """Return the part from the layer with that index on."""
        return dataclasses.replace(
            self,
            layers=self.layers[index:],
            activations=self.activations[index:],
            kept=self.kept[index:],
        )


def _activation(one: Call, after: Call) -> Activation:
    """Return what stands between two layers.

    Raises:
        NotApplicable: it is none of the activations that are known.
    """
    found = recognise(one.output, after.given) if one.output.shape == after.given.shape else None
    if found is None:
        raise NotApplicable(
            f"between layers {one.name!r} and {after.name!r} stands something else than a "
            "ReLU-like or an invertible activation"
        )
    return found


def on_array(function: Callable[[Tensor], Tensor], values: Array) -> Array:
    """Apply a function of tensors to an array."""
    return np.asarray(function(torch.from_numpy(values)).numpy())
