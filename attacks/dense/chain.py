"""Down a fully connected network from the last layer's inputs to the first layer's, for a batch.

With a layer's input `A` (B, n) and the loss's gradient at its output, `Δ` (B, m), per example, the
gradient of the mean loss is `∂L/∂W = Δᵀ A / B`. Going down, W the weights of the layer above,

    A = B pinv(Δᵀ) ∂L/∂W,      Δ' = (Δ W) ⊙ σ'.

Of A, rounding leaves the side of an activation near zero open, and an entry of Δ' on the wrong side
is wrong altogether. But each row of Δ' lies in the column space of that layer's gradient, which
has B of m dimensions, so the row is fitted there, `δ = Q q`, to the two values that each entry may
have, `d` or `low·d` (0 for ReLU), `d = (Δ W)` — by least squares, the nearer value chosen anew
until none changes, outliers left out. The entries that a ReLU shut are known exactly, 0, and get
the weight that their own residual earns; so δ's direction comes from them where labels or features
are off, and errors aren't handed down.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import qr, solve_triangular

from attacks.dense.network import FullyConnected, on_array
from attacks.types import NotApplicable
from attacks.victim.activation import Activation
from attacks.victim.gradients import Array, Layer

SIDE_ROUNDS = 12
"""Rounds of choosing sides; two or three are the rule."""
ABSOLUTE_ROUNDS = 8
"""Rounds of reweighting that turn least squares into least absolute deviations."""
SHUT = 5.0
"""Outputs up to this many times the most negative one count as shut at first."""
WIDEST = 1e4
"""Largest ratio of the residuals' scales on both sides that the weights follow."""
OUTLIER = 5.0
"""Residual, in standard deviations, from which an entry is left out of the next round."""


def invert_chain(
    network: FullyConnected, features: Array, generator: torch.Generator
) -> tuple[Array, Array]:
    """Go down from the last layer's inputs.

    Args:
        network: with its gradients.
        features: (B, D), the last layer's inputs, no two parallel; in a homogeneous network any
            scale will do, and is handed down.
        generator: draws the probes of the gradients' column spaces.

    Returns:
        The first layer's inputs (B, n), and their noise (B,).
    """
    head = network.layers[-1]
    a, noise = features, np.zeros(len(features))
    delta = np.linalg.lstsq(head.augmented(a).T, head.gradient.T, rcond=None)[0]
    for index in range(len(network.layers) - 2, -1, -1):
        layer = network.layers[index]
        space = column_space(layer.gradient, len(features), generator)
        d = delta @ network.layers[index + 1].weights / (network.kept[index] if network.kept else 1)
        delta = fit_rows(space, d, a, network.activations[index])
        a, noise = layer_inputs(layer, delta)
    return a, noise


def column_space(gradient: Array, rank: int, generator: torch.Generator) -> Array:
    """Return an orthonormal basis (m, rank) of a gradient's column space.

    By random probes and two power iterations: N. Halko, P. Martinsson, J. Tropp, "Finding structure
    with randomness", SIAM Review 2011, algorithm 4.4.
    """
    probes = min(rank + 8, *gradient.shape)
    draws = torch.randn(gradient.shape[1], probes, generator=generator, dtype=torch.float64)
    basis = np.linalg.qr(gradient @ draws.numpy())[0]
    for _ in range(2):
        basis = np.linalg.qr(gradient @ (gradient.T @ basis))[0]
    u = np.linalg.svd(basis.T @ gradient, full_matrices=False)[0]
    return np.asarray(basis @ u[:, :rank])


def fit_rows(space: Array, d: Array, a: Array, activation: Activation) -> Array:
    """Fit Δ's rows in a column space to the values that their entries may have.

    Args:
        space: (m, R), orthonormal.
        d: (B, m), Δ before the activation's slope.
        a: (B, m), the activation's output, roughly.
        activation: its slopes.

    Returns:
        Δ (B, m).

    Raises:
        NotApplicable: a row of d is zero.
    """
    low = activation.low
    values = d * (on_array(activation.slope, a) if low is None else 1.0)
    if not np.abs(values).max(axis=1).all():
        raise NotApplicable("an example's gradient vanishes on its way down the network")
    if low is None:
        return np.array([_fit_smooth(space, row) for row in values])
    # Outputs that ReLU shut scatter around zero by their error, as far below as above.
    error = SHUT * np.maximum(-a.min(axis=1, keepdims=True), 0) if low == 0 else 0.0
    rows = zip(values, a > error, strict=True)
    return np.array([_fit_sides(space, row, high, low) for row, high in rows])


def _fit_smooth(space: Array, values: Array) -> Array:
    """Fit one row (m,) by least squares without outliers."""
    everything = np.ones(len(values), dtype=bool)
    fitted = _project(space, values, np.ones(len(values)))
    for _ in range(2):
        weight = _weights(fitted - values, everything, float(np.abs(values).max()))
        fitted = _project(space, values, weight)
    return fitted


def _fit_sides(space: Array, values: Array, high: NDArray[np.bool_], low: float) -> Array:
    """Fit one row whose entries are `values` on the high side and `low · values` on the other.

    A least-squares fit that moves no entry to the other side starts the rounds; one that does was
    led astray, and a least-absolute one takes its place.
    """
    size = float(np.abs(values).max())
    target = np.where(high, values, low * values)
    fitted = _project(space, target, np.ones(len(values)))
    if (_sides(fitted, values, low) != high).any():
        for _ in range(ABSOLUTE_ROUNDS):
            distance = np.abs(fitted - target)
            fitted = _project(space, target, 1 / np.maximum(distance, 1e-6 * size))
    for done in range(SIDE_ROUNDS):
        before, high = high, _sides(fitted, values, low)
        if done >= 2 and (high == before).all():
            break
        target = np.where(high, values, low * values)
        fitted = _project(space, target, _weights(fitted - target, high, size))
    return np.where(high, fitted, 0.0) if low == 0 else fitted


def _sides(fitted: Array, values: Array, low: float) -> NDArray[np.bool_]:
    return np.asarray(np.abs(fitted - values) < np.abs(fitted - low * values))


def _project(space: Array, target: Array, weight: Array) -> Array:
    """Return the vector in a space (m, R) that is nearest to a target (m,) by weighted squares."""
    weighted = space * weight[:, None]
    q = np.linalg.lstsq(weighted.T @ space, weighted.T @ target, rcond=1e-15)[0]
    return np.asarray(space @ q)


def _weights(residual: Array, high: NDArray[np.bool_], size: float) -> Array:
    """Weigh entries (m,) by the residuals on their side, robustly; outliers by 0.

    Args:
        residual: (m,).
        high: (m,), the sides.
        size: the largest entry, which bounds what float64 can tell.
    """
    r = np.abs(residual)
    weight = np.zeros_like(r)
    parts = [part for part in (high, ~high) if part.any()]
    scales = [1.4826 * float(np.median(r[part])) for part in parts]
    floor = max(1e-12 * size, max(scales) / WIDEST)
    for part, own in zip(parts, scales, strict=True):
        scale = max(own, floor)
        weight[part] = (r[part] < OUTLIER * scale) * (floor / scale) ** 2
    return weight


def layer_inputs(layer: Layer, delta: Array) -> tuple[Array, Array]:
    """Return a layer's inputs (B, n) by its gradient and Δ (B, m), and their noise (B,).

    With a bias, the constant 1 among the inputs fixes each row's scale.

    Raises:
        NotApplicable: Δ's rows are linearly dependent.
    """
    q, r = qr(delta.T, mode="economic")
    if not np.abs(np.diag(r)).min() > 1e-14 * np.abs(r).max():
        raise NotApplicable(f"the examples can't be told apart by the gradient of {layer.name!r}")
    a = solve_triangular(r, q.T @ layer.gradient)
    rest = layer.gradient - q @ (q.T @ layer.gradient)
    freedom = max(rest.size - q.shape[1] * rest.shape[1], 1)
    sigma = np.sqrt(max(np.sum(rest**2) / freedom, np.mean(layer.rounding**2)))
    noise = sigma * np.linalg.norm(solve_triangular(r, np.eye(len(r))), axis=1)
    if layer.has_bias:
        scale = a[:, -1:]
        scale = np.where(scale == 0, np.nan, scale)
        return a[:, :-1] / scale, noise / np.abs(scale[:, 0])
    return a, noise
