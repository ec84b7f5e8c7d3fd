"""How much noise there is on each layer's gradient in one round: as told, or as it shows."""

from __future__ import annotations

import numpy as np

from attacks.dense.network import FullyConnected
from attacks.rounds.levels import spacings, variance_before
from attacks.types import GradientLeak
from attacks.victim.gradients import Array, Layer
from attacks.victim.network import Network

LEAST_NOISE = 1e-5
"""Standard deviation of noise, relative to the gradient's root mean square, that is assumed at
least: what masks at the border of two sides do is no noise."""


def noise_of(
    leak: GradientLeak, chain: FullyConnected
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return the standard deviations of noise on each layer, and the levels if there are any."""
    known = [spacings(leak, Network.of(leak), layer.name) for layer in chain.layers]
    if None not in known:
        levels = tuple(_by_column(layer, Δ) for layer, Δ in zip(chain.layers, known, strict=True))
        variances = [
            variance_before(Δ, layer.gradient) + layer.rounding**2
            for layer, Δ in zip(chain.layers, levels, strict=True)
        ]
        variances[0] = variances[0].mean(axis=1, keepdims=True)
        return tuple(np.sqrt(variance) for variance in variances), levels
    sigma = np.full((1, 1), _sigma(leak, chain.layers[0]))
    return (sigma,) * len(chain.layers), ()


def _by_column(layer: Layer, Δ: tuple[float, ...] | None) -> Array:
    """Return a weight's Δ, and the bias's behind it, as a row."""
    assert Δ is not None
    row = np.full((1, layer.gradient.shape[1]), Δ[0])
    row[:, len(layer.weights[0]) :] = Δ[-1]
    return row


def _sigma(leak: GradientLeak, first: Layer) -> float:
    """Return the standard deviation of noise: as told, or by what the examples leave."""
    noise, gradient = leak.told.noise_std, first.gradient
    if noise is not None and leak.lr is not None:
        noise /= leak.lr
    else:
        shape, size = gradient.shape, leak.steps.distinct or min(gradient.shape) // 2
        size = min(size, min(shape) - 1)
        values = np.linalg.svd(gradient, compute_uv=False)
        freedom = (shape[0] - size) * (shape[1] - size)
        noise = float(np.sqrt((values[size:] ** 2).sum() / freedom))
    rounding = float(np.sqrt(np.mean(first.rounding**2)))
    size = float(np.sqrt(np.mean(gradient**2)))
    return float(np.hypot(noise, max(rounding, LEAST_NOISE * size)))
