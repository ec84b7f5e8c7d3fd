"""A batch taken apart below its dense layers: what each example's convolutions gave.

`∂L/∂W` of the first dense layer holds the inputs of all B examples (`attacks.dense.batch`, from the
labels and features that `attacks.masks` or `attacks.batch` recover): so the top convolution's
output is known for each, as if it were alone. A convolution's gradient is a sum over the batch, and
says nothing of one example: the rank rule counts the outputs alone. What it says of all together is
the last test: the images found have to give the convolutions' gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from attacks.answers import LabelRecovery
from attacks.convolution.evidence import Evidence
from attacks.convolution.recursion import Front
from attacks.convolution.stages import Chain
from attacks.dense.batch import invert_batch
from attacks.dense.inputs import Inputs
from attacks.dense.network import FullyConnected
from attacks.numerics.rms import rms
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.gradients import Array, Layer
from attacks.victim.network import Network


def flattened(
    leak: GradientLeak, chain: Chain, labels: LabelRecovery, generator: torch.Generator
) -> tuple[Inputs, Tensor]:
    """Return the inputs of the first dense layer above the convolutions, and their noise (B, n).

    Args:
        leak: of one step on a batch.
        chain: its network.
        labels: with the features of all examples.
        generator: draws the probes of the gradients' column spaces.

    Raises:
        NotApplicable: features are missing, or the dense layers don't take the batch apart.
    """
    if labels.features is None or labels.labels is None:
        raise NotApplicable(
            "it starts from the last layer's features, which the label attack didn't recover"
        )
    if leak.batch_size not in (None, len(labels.features)):
        raise NotApplicable(
            f"a batch of {leak.batch_size} examples needs as many features, found "
            f"{len(labels.features)}"
        )
    dense = [stage.name for stage in chain.stages if stage.is_linear]
    layers = FullyConnected.above(leak, Network.of(leak), dense[0])
    layers = layers.rescaled(labels.gradient_scale or 1.0)
    features, soft = labels.features.double().numpy(), labels.labels.double().numpy()
    inputs = invert_batch(layers, features, soft, generator)
    return inputs, torch.from_numpy(_noise(layers.layers[0], inputs))


def _noise(layer: Layer, inputs: Inputs) -> Array:
    """Return standard deviations (B, n) of a layer's inputs, entry by entry, as they are rounded.

    With `G = Δᵀ A`, that of `A = pinv(Δᵀ) G`; no less in the mean than was measured.
    """
    a = inputs.a.numpy()
    kept = np.isfinite(a).all(axis=1)
    noise = np.full(a.shape, np.nan)
    delta = layer.gradient @ np.linalg.pinv(layer.augmented(a[kept]))
    own = np.sqrt(np.linalg.pinv(delta) ** 2 @ layer.rounding[:, : a.shape[1]] ** 2)
    measured = inputs.noise.numpy()[kept]
    mean = np.sqrt(np.mean(own**2, axis=1))
    noise[kept] = own * np.maximum(measured / np.maximum(mean, 1e-300), 1.0)[:, None]
    return noise


def front_of(inputs: Inputs, noise: Tensor, row: int, evidence: Evidence) -> Front:
    """Return what is known of the top convolution's output on one example."""
    value = inputs.a[row]
    own = evidence.eps * rms(value[value != 0])
    bar = float(inputs.scale_bar[row].nan_to_num(0.0))
    nothing = torch.zeros_like(value)
    return Front(value, noise[row].hypot(torch.tensor(own)), noise[row], nothing, nothing, bar)


def batch_misfit(
    chain: Chain, evidence: Evidence, images: Tensor, labels: Tensor, factor: float
) -> float:
    """Return the largest relative distance of a batch's convolutional gradients from the leak's.

    Args:
        chain: the network.
        evidence: the gradients.
        images: (B, C, H, W), of all examples.
        labels: (B, K), theirs.
        factor: on the gradients.
    """
    weights = [stage.weight.clone().requires_grad_() for stage in chain.body]
    a = chain.pixels.inputs(images)
    for stage, weight in zip(chain.body, weights, strict=True):
        a = stage.activation(replace(stage, weight=weight).preactivation(a))
    logits = chain.head.preactivation(a).flatten(1)
    loss = torch.nn.functional.cross_entropy(logits, labels) * factor
    gradients: Sequence[Tensor] = torch.autograd.grad(loss, weights)
    pairs = [(g, evidence.gradient(s)) for g, s in zip(gradients, chain.body, strict=True)]
    return max(float((found - given).norm() / given.norm()) for found, given in pairs)
