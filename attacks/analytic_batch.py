"""The first layer's inputs behind a batch's gradient, down a fully connected network.

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

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import qr, solve_triangular
from scipy.special import softmax

from attacks.fully_connected import Activation, FullyConnected, Layer
from attacks.label_refit import refit_labels
from attacks.last_layer import Array
from attacks.types import NotApplicable

ROUNDS = 12
"""Rounds of choosing sides; two or three are the rule."""
PARALLEL = 1e-5
"""Distance of unit rows below which they count as parallel: float32 features are exact to 1e-6."""
REST = 1e-2
"""Second singular value, relative to the first, of what one missing example may leave."""
WORST_SCALE = 0.05
"""Largest relative change of a scale that the labels may ask for."""
SIGMAS = 4.0
"""Standard deviations in an error bar."""
OUTLIER = 5.0
"""Residual, in standard deviations, from which an entry is left out of the next round."""


@dataclass(frozen=True, eq=False)
class BatchInputs:
    """What the gradient of the first layer gives.

    Args:
        inputs: (B, n), the first layer's inputs; rows of NaN where the scale is unknown.
        noise: (B,), root mean square error that noise in that gradient leaves in them.
        features: (B, D), what the network has to make of them; rows of NaN where unknown.
        scale_bars: (B,), error bars of the scales, relative; NaN where the images don't tell.
        reasons: why an example isn't identifiable, None where it is.
    """

    inputs: Array
    noise: Array
    features: Array
    scale_bars: Array
    reasons: tuple[str | None, ...]


def invert_batch(
    network: FullyConnected, features: Array, labels: Array, generator: torch.Generator
) -> BatchInputs:
    """Find the first layer's inputs of a batch.

    Args:
        network: with its gradients.
        features: (B, D), the last layer's inputs, rows of NaN where they aren't known.
        labels: (B, K), likewise.
        generator: draws the probes of the gradients' column spaces.

    Raises:
        NotApplicable: features are missing that the others don't determine, or a layer is too
            narrow for the batch.
    """
    narrow = next((x for x in network.layers[:-1] if len(x.weight) <= len(features)), None)
    if narrow is not None:
        raise NotApplicable(
            f"layer {narrow.name!r} has {len(narrow.weight)} units; to take {len(features)} "
            "examples apart, there must be more"
        )
    batch = len(features)
    head = network.layers[-1]
    known = np.isfinite(features).all(axis=1) & np.isfinite(labels).all(axis=1)
    directions = features[known]
    missing = tuple(np.flatnonzero(~known))
    if missing:
        directions = np.vstack([directions, last_direction(head, features, labels, known)])
    twins = parallel_rows(head.augmented(directions))
    kept = [row for row in range(len(directions)) if row not in twins]
    a, noise = invert_chain(network, directions[kept], generator)
    scales, bars = np.ones(len(kept)), np.full(len(kept), np.nan)
    if batch > 1 and network.is_homogeneous and not head.has_bias:
        rows = labels[known][[k for k in kept if k < known.sum()]]
        scales, bars = image_scales(network, a, rows)
    order = {row: at for at, row in enumerate(kept)}
    result = BatchInputs(
        np.full((batch, a.shape[1]), np.nan),
        np.zeros(batch),
        features.copy(),
        np.full(batch, np.nan),
        (),
    )
    reasons: list[str | None] = [None] * batch
    for at, row in enumerate(np.flatnonzero(known)):
        one = order[twins.get(at, at)]
        scale = scales[one]
        if at in twins:
            reasons[row] = reasons[np.flatnonzero(known)[twins[at]]] = (
                "its features are parallel to another example's: the gradient holds only their sum"
            )
            if network.is_homogeneous:
                scale *= np.linalg.norm(features[row]) / np.linalg.norm(directions[twins[at]])
        result.inputs[row] = scale * a[one]
        result.features[row] *= scales[one]
        result.noise[row], result.scale_bars[row] = scale * noise[one], bars[one]
    for row in missing:
        reasons[row] = "the label attack didn't recover its feature"
        if head.has_bias and network.layers[0].has_bias and len(missing) == 1:
            reasons[row] = None
            result.inputs[row], result.noise[row] = a[-1], noise[-1]
            result.features[row] = directions[-1]
    return dataclasses.replace(result, reasons=tuple(reasons))


def image_scales(network: FullyConnected, a: Array, labels: Array) -> tuple[Array, Array]:
    """Return the factors on the inputs (B, n) that their labels ask for, and their error bars.

    Where the labels' model doesn't fit, the factor stays 1 and the bar says by how much it's off.
    """
    scales, bars = np.ones(len(a)), np.full(len(a), np.nan)
    refit = refit_labels(network.layers[-1], network.forward(a)[-2], labels)
    rows = len(labels)
    off = np.abs(refit.scales - 1)
    trusted = (off < WORST_SCALE) & (SIGMAS * refit.bars < WORST_SCALE)
    scales[:rows] = np.where(trusted, refit.scales, 1.0)
    bars[:rows] = np.where(trusted, SIGMAS * refit.bars, off)
    return scales, bars


def last_direction(head: Layer, features: Array, labels: Array, known: Array) -> Array:
    """Return what features (1, D) or none (0, D) the known examples leave of the head's gradient.

    Where one example is missing, or several with parallel features, what is left has rank one. With
    a bias it comes at its scale, without as a unit vector.

    Raises:
        NotApplicable: more is left.
    """
    x = head.augmented(features[known])
    delta = softmax(x @ head.weight.T, axis=1) - labels[known]
    rest = head.gradient - delta.T @ x / len(features)
    _, s, v = np.linalg.svd(rest, full_matrices=False)
    missing = int(np.sum(~known))
    if s[1] > REST * s[0]:
        raise NotApplicable(
            f"the label attack left {missing} of {len(features)} examples out; a batch comes apart "
            "only when it leaves out one"
        )
    direction = v[0] / v[0, -1] if head.has_bias else v[0] * np.sign(v[0].sum())
    return np.asarray(direction[: features.shape[1]][None])


def parallel_rows(rows: Array) -> dict[int, int]:
    """Return, for each row that is parallel to an earlier one, the first such."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    twins: dict[int, int] = {}
    for row in range(len(unit)):
        off = np.linalg.norm(unit[:row] - unit[row], axis=1)
        near = [other for other in np.flatnonzero(off < PARALLEL) if other not in twins]
        if near:
            twins[row] = int(near[0])
    return twins


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
        d = delta @ network.layers[index + 1].weights
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
    """
    low = activation.low
    values = d * (activation.slope(a) if low is None else 1.0)
    # Outputs that ReLU shut scatter around zero by their error, as far below as above.
    error = 2 * np.maximum(-a.min(axis=1, keepdims=True), 0) if low == 0 else 0.0
    high = np.ones(d.shape, dtype=bool) if low is None else a > error
    weight = np.ones_like(d)
    fitted = np.zeros_like(d)
    for done in range(ROUNDS):
        target = np.where(high, values, 0.0 if low is None else low * values)
        for row in range(len(d)):
            weighted = space * weight[row][:, None]
            q = np.linalg.lstsq(weighted.T @ space, weighted.T @ target[row], rcond=1e-14)[0]
            fitted[row] = space @ q
        before = high
        if low is not None:
            high = np.abs(fitted - values) < np.abs(fitted - low * values)
            target = np.where(high, values, low * values)
        weight = _weights(fitted - target, high)
        if done >= 2 and (high == before).all():
            break
    return np.where(high, fitted, 0.0) if low == 0 else fitted


def _weights(residual: Array, high: Array) -> Array:
    """Weigh entries (B, m) by the residuals on their side, robustly; outliers by 0."""
    weight = np.zeros_like(residual)
    for row, (r, side) in enumerate(zip(np.abs(residual), high, strict=True)):
        floor = 1e-16 * r.max() + 1e-300
        for part in (side, ~side):
            if part.any():
                scale = max(1.4826 * float(np.median(r[part])), floor)
                weight[row, part] = (r[part] < OUTLIER * scale) / scale**2
        weight[row] /= weight[row].max()
    return weight


def layer_inputs(layer: Layer, delta: Array) -> tuple[Array, Array]:
    """Return a layer's inputs (B, n) by its gradient and Δ (B, m), and their noise (B,).

    With a bias, the constant 1 among the inputs fixes each row's scale.
    """
    q, r = qr(delta.T, mode="economic")
    a = solve_triangular(r, q.T @ layer.gradient)
    rest = layer.gradient - q @ (q.T @ layer.gradient)
    freedom = max(rest.size - q.shape[1] * rest.shape[1], 1)
    sigma = np.sqrt(max(np.sum(rest**2) / freedom, np.mean(layer.rounding**2)))
    noise = sigma * np.linalg.norm(solve_triangular(r, np.eye(len(r))), axis=1)
    if layer.has_bias:
        scale = a[:, -1:]
        return a[:, :-1] / scale, noise / np.abs(scale[:, 0])
    return a, noise
