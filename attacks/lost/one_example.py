"""The entries of one example's gradient that a defense left out, found again.

Ours. Of one example each layer's gradient has rank one, `∂L/∂W_l = δ_l a_{l−1}ᵀ`, so that a few
entries of a row and of a column tell the others. In a fully connected network they tell more: all
of it follows from the first layer's input a₀ and the last layer's δ,

    a_l = σ(W_l a_{l−1}),      δ_{l−1} = (W_lᵀ δ_l) ⊙ σ'(a_{l−1}).

1. Complete the first layer's gradient: its row a₀, but for the entries whose whole column is lost.
2. The second layer's row is a₁ up to a factor s; where a₁ > 0, `(W₁ a₀)_i = s a₁ᵢ` is linear in the
   lost entries of a₀ and in s: least squares. With fewer equations than unknowns, basis pursuit: of
   all solutions the one with the fewest pixels that aren't black, by the least L1 norm (S. Chen, D.
   Donoho, M. Saunders, "Atomic decomposition by basis pursuit", SIAM J. Sci. Comput. 1998).
3. Forward, then the last layer's δ from what is left of its rows and of the layer before, then
   backward.
4. Put in what was left out. What was sent stays as it is, and has to agree.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog

from attacks.dense.network import FullyConnected, on_array
from attacks.lost.sent import misfit
from attacks.types import NotApplicable
from attacks.victim.gradients import Array, Layer

SWEEPS = 500
"""Alternating least squares: most sweeps."""
CONVERGED = 1e-14
"""Relative change at which they have converged."""
NEAR_ENOUGH = 0.05
"""Misfit on the entries that were sent, relative, from which nothing is put in."""


def complete_one(layers: FullyConnected, black: Array) -> list[Array]:
    """Return every layer's gradient of one example.

    Args:
        layers: from the image to the logits, with what came of their gradients: what isn't zero.
        black: the first layer's input (n,) on a black image.

    Raises:
        NotApplicable: a bias wasn't sent, or what is found doesn't agree with what was.
    """
    row = _first_input(layers, black)
    if layers.layers[0].has_bias:
        if row[-1] == 0:
            raise NotApplicable("the first layer's bias wasn't sent")
        rows = [row[:-1] / row[-1]]
    else:
        rows = [row, -row]
    sent = [layer.gradient != 0 for layer in layers.layers]
    tried = [predicted_gradients(layers, a) for a in rows]
    off = [misfit(layers.layers, sent, gradients) for gradients in tried]
    if not min(off) <= NEAR_ENOUGH:
        raise NotApplicable("what is found of the example doesn't agree with what was sent")
    return tried[off.index(min(off))]


def complete_rank_one(gradient: Array) -> tuple[Array, Array]:
    """Fit `δ aᵀ` to the entries of a matrix (m, n) that aren't zero, by alternating least squares.

    Returns:
        δ (m,) and a (n,) with ‖a‖ = 1; entries of rows and columns that are zero altogether are 0.
    """
    weight = (gradient != 0).astype(np.float64)
    δ = gradient @ gradient[np.abs(gradient).sum(axis=1).argmax()]
    a = np.zeros(gradient.shape[1])
    for _ in range(SWEEPS):
        new = _ratio(gradient.T @ δ, weight.T @ δ**2)
        new /= max(float(np.linalg.norm(new)), np.finfo(float).tiny)
        moved = float(np.linalg.norm(new - a))
        a = new
        δ = _ratio(gradient @ a, weight @ a**2)
        if moved <= CONVERGED:
            break
    return δ, a


def predicted_gradients(layers: FullyConnected, a: Array) -> list[Array]:
    """Return every layer's gradient `δ_l a_{l−1}ᵀ`, given the first layer's input (n,).

    The last layer's δ is fitted to its entries that aren't zero and to those of the layer before.
    """
    *inputs, _ = layers.forward(a[None])
    rows = [layer.augmented(x)[0] for layer, x in zip(layers.layers, inputs, strict=True)]
    slopes = [
        on_array(activation.slope, x[0])
        for activation, x in zip(layers.activations, inputs[1:], strict=True)
    ]
    δ, sure = _fitted(layers.layers[-1], rows[-1])
    if slopes:
        behind, weight = _fitted(layers.layers[-2], rows[-2])
        through = layers.layers[-1].weights.T * slopes[-1][:, None]
        normal = np.diag(sure) + (through.T * weight) @ through
        right = sure * δ + through.T @ (weight * behind)
        δ = np.asarray(np.linalg.lstsq(normal, right, rcond=None)[0])
    found = []
    for index in reversed(range(len(rows))):
        found.append(np.outer(δ, rows[index]))
        if index:
            δ = (layers.layers[index].weights.T @ δ) * slopes[index - 1]
    return found[::-1]


def _fitted(layer: Layer, row: Array) -> tuple[Array, Array]:
    """Fit `δ aᵀ` to the entries of a layer's gradient that aren't zero; return δ and its weights.

    A weight is the inverse variance of an entry of δ, (m,), in units of the gradient's own.
    """
    weight = (layer.gradient != 0) @ row**2
    return _ratio(layer.gradient @ row, weight), weight


def _first_input(layers: FullyConnected, black: Array) -> Array:
    """Return the first layer's input, with the constant 1 behind it if there is a bias.

    Without a bias only up to a factor of any sign.

    Args:
        layers: the network.
        black: the first layer's input (n,) on a black image.
    """
    _, row = complete_rank_one(layers.layers[0].gradient)
    lost = row == 0
    if len(layers.layers) < 2 or layers.activations[0].low is None or not lost.any():
        return row
    _, a = complete_rank_one(layers.layers[1].gradient)
    a = a[: len(layers.layers[0].weight)]
    a = a * np.sign(a[np.abs(a).argmax()])
    active = a > 0
    weight = layers.layers[0].weight[active]
    known, unknown = -weight @ row, weight[:, lost]
    filled = row.copy()
    if active.sum() > lost.sum():
        system = np.column_stack([unknown, -a[active]])
        filled[lost] = np.linalg.lstsq(system, known, rcond=None)[0][:-1]
        return filled
    ground = layers.layers[0].augmented(black[None])[0][lost]
    filled[lost] = _nearest_to(ground, unknown, a[active], known)
    return filled


def _nearest_to(ground: Array, matrix: Array, free: Array, right: Array) -> Array:
    """Solve `matrix x − s free = right` with the least ‖x − t ground‖₁, for any s and t; (n,)."""
    system = np.column_stack([matrix, -matrix, matrix @ ground, -free])
    count = len(ground)
    cost = np.concatenate([np.ones(2 * count), np.zeros(2)])
    bounds = [(0, None)] * (2 * count) + [(None, None)] * 2
    found = linprog(cost, A_eq=system, b_eq=right, bounds=bounds, method="highs")
    if found.x is None:
        return np.zeros(count)
    solved: Array = found.x[:count] - found.x[count : 2 * count] + found.x[-2] * ground
    return solved


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
