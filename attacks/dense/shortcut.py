"""The first layer's input behind one example's gradient, without going down the network.

The first layer's gradient has rank one, `∂L/∂W₁ = δ₁ aᵀ`. With a bias, `∂L/∂b₁ = δ₁` gives the
input a outright, whatever the network above. Without, let u be the unit row: a network of ReLU-like
activations f up to its last layer is homogeneous, `f(s u) = s f(u)` for s > 0, and the recovered
feature x fixes

    a = s u,      s = ⟨f(u), x⟩ / ‖f(u)‖²,      u of the sign that leaves the smaller residual.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.types import GradientLeak, NotApplicable
from attacks.victim.gradients import read_gradient
from attacks.victim.network import Network, parameter_name
from attacks.victim.pixel_map import PixelMap

FIRST = "the first layer"
CHUNK = 256
"""Rows of a gradient that are held in float64 at once."""
SAMPLED_ROWS = 128
"""Rows on which noise is measured."""
LINEARITY = 1e-4
"""Relative deviation from `f(2 a) = 2 f(a)` that float32 forward passes may show."""


def from_bias(leak: GradientLeak, first: str) -> tuple[Tensor, float]:
    """Return `a = δᵀ ∂L/∂W / ‖δ‖²` (n,) with δ = ∂L/∂b, and the rms error that noise leaves in it.

    Raises:
        NotApplicable: a gradient is missing, not finite, or zero.
    """
    gradient = read_gradient(leak, parameter_name(first, "weight"), FIRST)
    delta = read_gradient(leak, parameter_name(first, "bias"), FIRST).double()
    a, sigma = _row_space(gradient, delta)
    return a, sigma / float(delta.norm())


def from_feature(
    leak: GradientLeak, network: Network, first: str, inverse: PixelMap, feature: Tensor
) -> tuple[Tensor, float]:
    """Return `a = s u` (n,) by the last layer's input (D,), and the rms error that noise leaves.

    Raises:
        NotApplicable: the gradient is missing, not finite, or zero, or the feature vanishes on both
            of its directions.
    """
    gradient = read_gradient(leak, parameter_name(first, "weight"), FIRST)
    sizes = torch.linalg.vector_norm(gradient, dim=1)
    delta = (gradient @ (gradient[sizes.argmax()] / sizes.max())).double()
    a, sigma = _row_space(gradient, delta)
    u = a / a.norm()
    responses = network.double_features(inverse.pixels(torch.stack([u, -u])))
    fits = [_scale(response, feature) for response in responses]
    sign, (scale, residual) = min(zip((1, -1), fits, strict=True), key=lambda fit: fit[1][1])
    if residual == float("inf"):
        raise NotApplicable("the network's feature vanishes on both directions of the gradient")
    return scale * sign * u, scale * sigma / float(delta.norm() * a.norm())


def is_homogeneous(network: Network, inverse: PixelMap) -> bool:
    """Say whether doubling the first layer's input doubles the feature, on a random image."""
    draws = torch.Generator().manual_seed(1)
    probe = torch.rand(inverse.slope.shape, generator=draws, dtype=torch.float64) - 0.5
    once, twice = network.features(inverse.pixels(torch.stack([probe, 2 * probe]))).double()
    return bool((twice - 2 * once).abs().max() <= LINEARITY * twice.abs().max())


def _row_space(gradient: Tensor, delta: Tensor) -> tuple[Tensor, float]:
    """Return `δᵀ G / ‖δ‖²` (n,), and the standard deviation of what `δ aᵀ` leaves of G (m, n).

    In float64 by chunks: the gradient may have tens of millions of entries. The deviation is that
    of some of the rows; rows of dead units are zero, and carry no noise.
    """
    total = torch.zeros(gradient.shape[1], dtype=torch.float64)
    for start in range(0, len(gradient), CHUNK):
        total += delta[start : start + CHUNK] @ gradient[start : start + CHUNK].double()
    a = total / (delta @ delta)
    live = delta.nonzero()[:, 0]
    some = live[:: max(len(live) // SAMPLED_ROWS, 1)]
    rest = gradient[some].double() - torch.outer(delta[some], a)
    share = max(len(live) - 1, 1) / len(live)  # a is fitted to as many numbers as one row has
    return a, float(rest.square().mean() / share) ** 0.5


def _scale(response: Tensor, feature: Tensor) -> tuple[float, float]:
    """Return s > 0 with `s f(u) ≈ x`, and the relative residual; infinite where there is none."""
    scale = float(response @ feature) / max(float(response @ response), 1e-300)
    if scale <= 0:
        return 0.0, float("inf")
    return scale, float((scale * response - feature).norm() / feature.norm())
