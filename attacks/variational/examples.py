"""The examples' inputs behind the layers up to the encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from attacks.dense.network import FullyConnected
from attacks.facts import Bottleneck
from attacks.masks.equation import MaskEquation
from attacks.masks.examples import Examples, Parts, examples_of, signs
from attacks.masks.find import find_pairs
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.gradients import Layer
from attacks.victim.network import Network
from attacks.victim.require import require_known_layers, require_one_step

OFF_UNIT = 1e-6
"""δ of a unit, relative to the largest, up to which it counts as off."""


@dataclass(frozen=True, eq=False)
class Bottlenecked:
    """A network with a bottleneck, and the gradient of each layer.

    Args:
        below: from the image to the encoder.
        decoder: behind the draw.
        head: the last layer.
        size: k.
        beta: β.
    """

    below: FullyConnected
    decoder: Layer
    head: Layer
    size: int
    beta: float

    @classmethod
    def of(cls, leak: GradientLeak, network: Network) -> Bottlenecked:
        """Take a network apart.

        Raises:
            NotApplicable: the layers before its bottleneck are no chain of linear ones, or it isn't
                where it is told to be.
        """
        require_one_step(leak)
        fact = next(fact for fact in leak.knowledge if isinstance(fact, Bottleneck))
        names, last = network.executed, network.executed[-3:]
        shapes = [tuple(network.linear[name].weight.shape) for name in last]
        is_there = len(last) == 3 and (
            (shapes[0][0], shapes[1][1], shapes[1][0]) == (2 * fact.size, fact.size, shapes[2][1])
        )
        if not is_there:
            raise NotApplicable(
                f"the network has no bottleneck of {fact.size} variables in front of its last layer"
            )
        encoder, decoder, head = last
        require_known_layers(leak)
        return cls(
            FullyConnected.above(leak, network, names[0], encoder),
            Layer.of(leak, network, decoder),
            Layer.of(leak, network, head),
            fact.size,
            fact.beta,
        )


def examples_below(
    network: Bottlenecked, batch: int, generator: torch.Generator
) -> tuple[Parts, Examples]:
    """Return the examples' inputs, and their way to the encoder, whose outputs are the last here.

    Args:
        network: with its gradients.
        batch: B.
        generator: draws starts.

    Raises:
        NotApplicable: nothing gives inputs their scale, or the layers don't show all examples.
    """
    chain = network.below
    if chain.first_bias is None:
        raise NotApplicable("no layer up to the encoder has a bias: nothing gives inputs a scale")
    if any(one.low is None for one in chain.activations[: chain.first_bias]):
        raise NotApplicable("an activation below the first bias isn't homogeneous")
    if batch == 1:
        parts = _one_example(chain.layers[0])
    elif len(chain.layers) == 1:
        raise NotApplicable("no layer in front of the encoder tells the examples of a batch apart")
    else:
        equation = MaskEquation.of(chain, 0, batch)
        pairs = find_pairs(equation, chain, 0, generator)
        if len(pairs) < batch:
            raise NotApplicable(
                f"the masks of layer {equation.source.name!r} show {len(pairs)} of {batch} examples"
            )
        parts = Parts.of_pairs(equation, pairs, chain, batch)
    return parts, examples_of(parts, chain, batch)


def _one_example(layer: Layer) -> Parts:
    """Return the one example's part of a layer's gradient, which is all of it.

    Raises:
        NotApplicable: the gradient isn't of rank one.
    """
    live = np.asarray(layer.gradient.any(axis=1))
    left, values, right = np.linalg.svd(layer.gradient[live], full_matrices=False)
    noise = float(np.sqrt(np.mean(layer.rounding[live] ** 2) * sum(layer.gradient[live].shape)))
    δ, a = values[0] * left[:, 0], right[0]
    if layer.has_bias:
        scale = a[-1] or np.nan
    else:
        is_on = np.abs(δ) > OFF_UNIT * np.abs(δ).max()
        scale = float(signs((a @ layer.weight[live].T)[None], is_on[None])[0, 0])
    a, δ = a[: layer.weights.shape[1]] / scale, scale * δ
    error = np.array([noise / values[0]])
    return Parts(a[None], δ[None], error, error, np.ones(1, dtype=bool), live)
