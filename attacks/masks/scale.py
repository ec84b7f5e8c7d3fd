"""The scale of a layer's inputs, where the layer itself has no bias to tell it.

Up to the first layer above that has a bias, nothing but ReLU-like activations and weights: an
example's direction `u` passes through as it is, and its input there is `s a`, a that of u. Of that
layer's gradient

    ∂L/∂W = Σ_b (s_b δ_b / B) a_bᵀ,      ∂L/∂b = Σ_b δ_b / B,

the first gives the `c_b = s_b δ_b / B` by least squares, and the second is then linear in the 1/s:
`∂L/∂b = Σ_b c_b / s_b`, as many equations as the layer has units. Those of the last layer are K − 1
for a whole batch; there the bias is an offset to the logits, and s what a label asks for, as where
no layer has a bias (`attacks.one_example`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from attacks.dense.network import FullyConnected
from attacks.dense.refit import coefficients
from attacks.types import NotApplicable
from attacks.victim.gradients import Array

WORST_TOLD_SCALE = 0.05
"""Standard deviation of a scale, relative, beyond which a bias tells it too roughly."""
MOST_BIAS_MISFIT = 10.0
"""Rms misfit of a bias's gradient, in standard deviations, beyond which it isn't the examples'."""


def with_scale(chain: FullyConnected) -> FullyConnected:
    """Return a chain whose own biases, or whose labels, give its examples their scale.

    It is the same but for a bias that the last layer alone has, which is left out.

    Raises:
        NotApplicable: neither does.
    """
    first, index = chain.layers[0], chain.first_bias
    if index == 0:
        return chain
    passed = chain.activations if index is None else chain.activations[:index]
    odd = next((n for n, one in enumerate(passed) if one.low is None), None)
    if odd is not None:
        raise NotApplicable(
            f"layer {first.name!r} has no bias, and behind layer {chain.layers[odd].name!r} stands "
            f"{passed[odd].name}, which isn't homogeneous: nothing gives an example its scale"
        )
    *below, last = chain.layers
    if index == len(below):
        width = last.weights.shape[1]
        is_weight = np.arange(last.weight.shape[1]) < width
        last = dataclasses.replace(last.only(is_weight), has_bias=False)
        return dataclasses.replace(chain, layers=(*below, last))
    return chain


def scales_by_bias(
    chain: FullyConnected, inputs: Array, batch: int, kept: Array | None
) -> tuple[Array, Array]:
    """Return the factors (R, 1) on a chain's inputs that the first bias above asks for.

    Args:
        chain: with a bias behind the first layer.
        inputs: (R, n), of the first layer.
        batch: B of the mean.
        kept: factors (R, m) on the first layer's outputs that the client's dropout left, if any.

    Returns:
        They, and their relative errors (R,).

    Raises:
        NotApplicable: they aren't all positive, or too rough, or the bias's gradient isn't that of
            these examples.
    """
    index = chain.first_bias
    assert index
    layer, a = chain.layers[index], chain.forward(inputs, kept)[index]
    is_weight = np.arange(layer.weight.shape[1]) < a.shape[1]
    parts, spread = coefficients(layer.only(is_weight), a, batch)
    told, rounding = batch * layer.gradient[:, -1], batch * layer.rounding[:, -1]
    inverse = np.linalg.lstsq(parts.T, told, rcond=None)[0]
    std = np.hypot(np.hypot(rounding, layer.eps * np.abs(told)), np.abs(inverse) @ spread) + 1e-300
    design = parts.T / std[:, None]
    inverse, _, rank, _ = np.linalg.lstsq(design, told / std, rcond=None)
    freedom = max(len(told) - len(inverse), 1)
    misfit = float(np.linalg.norm(told / std - design @ inverse) / np.sqrt(freedom))
    errors = max(misfit, 1.0) * np.linalg.norm(np.linalg.pinv(design), axis=1) / np.abs(inverse)
    is_told = rank == len(inverse) and (inverse > 0).all() and errors.max() <= WORST_TOLD_SCALE
    if not (is_told and misfit <= MOST_BIAS_MISFIT):
        raise NotApplicable(
            f"layer {chain.layers[0].name!r} has no bias, and that of layer {layer.name!r} doesn't "
            f"tell the scale of {len(inputs)} examples: it leaves "
            f"{errors.max():.0%} of one open, with a misfit of {misfit:.2g}"
        )
    return 1 / inverse[:, None], errors
