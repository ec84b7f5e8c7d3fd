"""One example's label from the gradients of all layers, where the last one alone leaves it open.

[ours] In a network without biases and of ReLU-like activations, an input `s u` of unknown scale s
has in each layer the input `s ā_l`, ā those of u, and the masks of u. So with κ = s (p − y)

    ∂L/∂W_l = (J_l κ) ā_lᵀ,      J_l = M_l W_{l+1}ᵀ M_{l+1} … W_Lᵀ,

linear in κ (K,) alone; the last layer's gradient is κ ā_Lᵀ. All other layers measure it too: where
activations shrink from layer to layer, as under PyTorch's initialisation, more exactly than the
last. u is the first layer's, by its own gradient.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from attacks.dense.network import FullyConnected, on_array
from attacks.one_example.problem import OWN_EPS, Problem
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.gradients import Array
from attacks.victim.network import Network

BORDER = 1e-4
"""Outputs, relative to a layer's root mean square, up to which the side of their activation is
left open, and their rows are left out."""
SUMMED = 2.0
"""Error of a gradient's entries before they were sent, in roundoffs of their root mean square."""
FITS = 3.0
"""Misfit of a layer's gradient, in standard deviations of its rounding, up to which it is one
example's."""


def with_all_layers(problem: Problem, leak: GradientLeak, network: Network) -> Problem | None:
    """Return the last layer's problem with α and g from all layers.

    None where the network isn't such a one, or the layers aren't those of one example.

    Args:
        problem: of one example, by the last layer.
        leak: of one step.
        network: a view of its model.
    """
    try:
        chain = FullyConnected.of(leak, network)
    except NotApplicable:
        return None
    is_plain = chain.is_homogeneous and not chain.layers[-1].has_bias and not chain.kept
    if problem.is_noisy or len(chain.layers) < 2 or not is_plain:
        return None
    first = chain.layers[0].gradient
    direction = np.linalg.svd(first, full_matrices=False)[2][0]
    found = [_from(chain, sign * direction) for sign in (1.0, -1.0)]
    misfit, κ, covariance, feature = min(found, key=lambda one: one[0])
    size = float(np.linalg.norm(feature))
    if not (misfit <= FITS and size > 0):
        return None
    α = size * κ
    own = size**2 * np.diag(covariance) + (OWN_EPS * np.linalg.norm(α)) ** 2
    # The direction errs by the first layer's rounding, averaged over its units.
    off = float(np.sqrt(np.mean(chain.layers[0].rounding ** 2)) / np.linalg.norm(first))
    relative = off * np.sqrt(len(direction)) + problem.eps
    return dataclasses.replace(
        problem,
        α=α - α.mean(),
        g=feature / size,
        σ_α=np.sqrt(own) * max(misfit, 1.0),
        σ_g=np.maximum(relative * np.abs(feature) / size, 0.0),
        drift=float(α.sum()),
    )


def _from(chain: FullyConnected, u: Array) -> tuple[float, Array, Array, Array]:
    """Return the misfit, κ, its covariance and ā_L for an input's direction u (n,)."""
    values = chain.forward(u[None])
    classes = len(chain.layers[-1].weight)
    jacobian = np.eye(classes)
    normal, target = np.zeros((classes, classes)), np.zeros(classes)
    parts = []
    for index in range(len(chain.layers) - 1, -1, -1):
        layer, a = chain.layers[index], values[index][0]
        if index < len(chain.activations):
            out = values[index + 1]
            slopes = on_array(chain.activations[index].slope, out)[0]
            jacobian = slopes[:, None] * (chain.layers[index + 1].weights.T @ jacobian)
            z = layer.weight @ a
            clear = np.abs(z) > BORDER * np.sqrt(np.mean(z**2))
        else:
            clear = np.ones(classes, dtype=bool)
        gradient, variance = layer.gradient[clear], layer.rounding[clear] ** 2
        # What the client computed was rounded before, relative to the sums behind it.
        variance = variance + (SUMMED * layer.eps) ** 2 * np.mean(gradient**2)
        if not (variance.all() and a.any()):
            return np.inf, target, normal, values[-2][0]
        j = jacobian[clear]
        normal += (j.T * ((1 / variance) @ a**2)) @ j
        target += j.T @ ((gradient / variance) @ a)
        parts.append((gradient, variance, j, a))
    covariance = np.asarray(np.linalg.pinv(normal, hermitian=True), dtype=np.float64)
    κ = np.asarray(covariance @ target, dtype=np.float64)
    misfits = [np.sqrt(np.mean((g - np.outer(j @ κ, a)) ** 2 / v)) for g, v, j, a in parts]
    return float(max(misfits)), κ, covariance, values[-2][0]
