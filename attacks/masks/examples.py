"""Step 5: the examples behind all pairs of a layer, and a test that wrong ones fail.

With all R pairs, Q (R, R) of rows q_b, `G_w = Σ_b (U q_b) m_bᵀ` has the inputs `M = Q⁻ᵀ S V`. A
bias, whose input is 1, gives each row its scale and sign; without one, the sign is that whose way
through the layer turns on the units that the mask does, and the scale another bias's to tell, or a
label's (`scale`). From there the network leads to the last layer's inputs `x_b`, and these, by
least squares on its gradient, to `e_b = p_b − y_b`.

The way back is the test: handed down through the network, `e_b` has to give `δ_b`, unit by unit.
So have the rows of the last layer's gradient to lie in the span of the `x_b`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.dense.network import FullyConnected, on_array
from attacks.dense.refit import coefficients
from attacks.masks.equation import MaskEquation
from attacks.masks.polish import Pair
from attacks.masks.scale import scales_by_bias
from attacks.types import NotApplicable
from attacks.victim.gradients import Array

HEAD_LIMIT = 10.0
"""What the last layer's gradient may have beside the examples' inputs, in standard deviations of
rounding or noise: right ones leave 1 to 3."""
LEAST_HEAD = 1e-9
"""The same, relative to the gradient, in float64."""
RETURN_LIMITS = (1e-4, 0.2)
"""Tolerance of an entry that is handed down, relative to their rms, at least and at most."""
RETURN_SIGMAS = 30.0
"""The same, in units of what the example's misfit and its inputs' errors leave."""
WRONG_SHARE = 0.1
"""Share of a layer's live units that may be off: those at the border between on and off."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A layer's gradient taken apart, `∂L/∂[W b] = (1/B) Σ_b δ_b [a_b 1]ᵀ`.

    Args:
        inputs: a, (R, n); without a bias unit vectors, and δ what belongs to these.
        delta: δ, (R, D), of the live units.
        errors: of the inputs, relative, (R,).
        misfits: of the δ, likewise.
        is_clear: whether an example's part is its own, (R,).
        live: which of all units those are, (m,).
        noise: standard deviation of the gradient's entries that rounding doesn't explain.
        rounding_share: of the errors, what rounding explains.
        dropped: factors (R, m) on the layer's outputs that the client's dropout left, if any.
    """

    inputs: Array
    delta: Array
    errors: Array
    misfits: Array
    is_clear: NDArray[np.bool_]
    live: NDArray[np.bool_]
    noise: float = 0.0
    rounding_share: float = 1.0
    dropped: Array | None = None

    @classmethod
    def of_pairs(
        cls, equation: MaskEquation, pairs: Sequence[Pair], chain: FullyConnected, batch: int
    ) -> Parts:
        """Return them from all pairs of a chain's first layer.

        Args:
            equation: of that layer.
            pairs: R of them.
            chain: from that layer on.
            batch: B of the mean.
        """
        both = float(np.mean(equation.source.rounding**2))
        return cls(
            *first_inputs(equation, pairs, batch),
            np.array([pair.misfit for pair in pairs]),
            np.array([pair.is_clear for pair in pairs]),
            equation.live,
            equation.noise,
            float(np.sqrt(max(1 - equation.noise**2 / both, 0.0))),
            _dropout(equation, pairs, chain),
        )


@dataclass(frozen=True, eq=False)
class Examples:
    """A batch's examples of different inputs.

    Args:
        inputs: (R, n), of the layer whose pairs they are; of any scale without a bias.
        features: (R, D), the last layer's inputs, with the bias's 1 where there is one.
        mixtures: e, (R, K), with `∂L/∂W = (1/B) Σ_b e_b x_bᵀ`.
        spread: of their entries, standard deviations, (R, K).
        errors: of the inputs, relative, (R,).
        returns: share of the layer's units where the way back misses δ, (R,).
        units: of that layer, live ones.
        is_whole: whether the last layer's gradient is that of these inputs.
        has_scale: whether a bias gives the inputs theirs.
    """

    inputs: Array
    features: Array
    mixtures: Array
    spread: Array
    errors: Array
    returns: Array
    units: int
    is_whole: bool
    has_scale: bool


def examples_of(parts: Parts, chain: FullyConnected, batch: int) -> Examples:
    """Go from the first layer of a chain to its end, and back.

    Args:
        parts: of the first layer's gradient.
        chain: from that layer to the logits, with its gradients.
        batch: B of the mean.

    Raises:
        NotApplicable: the last layer's inputs are linearly dependent, or the bias that gives the
            first ones their scale tells it too roughly.
    """
    head = chain.layers[-1]
    inputs, delta, errors = parts.inputs, parts.delta, parts.errors
    if chain.first_bias:  # neither the first layer's nor none
        scales, off = scales_by_bias(chain, inputs, batch, parts.dropped)
        inputs, delta, errors = scales * inputs, delta / scales, np.hypot(errors, off)
    values = chain.forward(inputs, parts.dropped)
    features = head.augmented(values[-2])
    if not np.isfinite(features).all() or np.linalg.matrix_rank(features) < len(features):
        raise NotApplicable("the examples' last features are linearly dependent")
    mixtures, spread = coefficients(head, features, batch)
    rest = head.gradient - mixtures.T @ features / batch
    if parts.noise:  # it may be another in the last layer, which shows its own
        mixtures, spread = coefficients(head, features, batch, _noise_beside(features, rest))
    # Errors of the features are passed on, too, to first order; they point anywhere.
    inverse = np.linalg.norm(np.linalg.pinv(features), axis=0)
    wrong = errors * np.linalg.norm(features, axis=1) / np.sqrt(features.shape[1])
    spread = np.hypot(spread, np.outer(inverse, wrong @ np.abs(mixtures)))
    returns = _returns(chain, values, mixtures, delta, parts, np.hypot(errors, parts.misfits))
    return Examples(
        inputs,
        features,
        mixtures,
        spread,
        errors,
        returns,
        delta.shape[1],
        _is_rounding(rest, head.gradient, np.hypot(head.rounding, parts.noise)),
        chain.first_bias is not None,
    )


def first_inputs(
    equation: MaskEquation, pairs: Sequence[Pair], batch: int
) -> tuple[Array, Array, Array]:
    """Return a layer's inputs (R, n), its δ (R, D) and the inputs' relative errors (R,).

    Without a bias inputs are unit vectors, and δ is what belongs to these.
    """
    source = equation.source
    q = np.array([pair.q for pair in pairs])
    dual = np.linalg.inv(q).T
    rows = ((dual * equation.values) @ equation.right) * equation.columns
    sizes = np.linalg.norm(rows, axis=1)
    # Noise of G_w; and what the errors of the q pass on of all other rows.
    noise = equation.sigma * np.linalg.norm(equation.columns)
    wrong = np.linalg.norm([pair.misfit for pair in pairs] * sizes)
    passed = float(wrong) / np.sqrt(len(equation.left))
    errors = np.linalg.norm(dual, axis=1) * np.hypot(noise, passed) / sizes
    delta = equation.rows * (q @ equation.left.T)
    if source.has_bias:
        scale = np.where(rows[:, -1:] == 0, np.nan, rows[:, -1:])
        return rows[:, :-1] / scale, batch * scale * delta, errors
    sign = signs(rows @ source.weight.T, np.array([pair.is_on for pair in pairs]))
    return sign * rows / sizes[:, None], batch * sign * sizes[:, None] * delta, errors


def _dropout(equation: MaskEquation, pairs: Sequence[Pair], chain: FullyConnected) -> Array | None:
    """Return the factors (R, m) on a layer's outputs that the client's dropout left, if any."""
    if not chain.kept or chain.kept[0] == 1:
        return None
    factors = np.zeros((len(pairs), len(equation.live)))
    factors[:, equation.live] = np.array([pair.is_on for pair in pairs]) / chain.kept[0]
    return factors


def signs(outputs: Array, masks: NDArray[np.bool_]) -> Array:
    """Return the sign (R, 1) of each input whose outputs (R, D) are on where the masks say."""
    agreeing = np.where((outputs > 0) == masks, 1, -1).sum(axis=1, keepdims=True)
    return np.where(agreeing >= 0, 1.0, -1.0)


def _returns(
    chain: FullyConnected,
    values: Sequence[Array],
    mixtures: Array,
    delta: Array,
    parts: Parts,
    errors: Array,
) -> Array:
    """Return the share of units (R,) where what is handed down isn't δ, (R, D).

    Without a bias δ's scale isn't known, and that of least squares is taken.
    """
    down = mixtures
    for layer, activation, a in zip(
        chain.layers[:0:-1], chain.activations[::-1], values[-2:0:-1], strict=True
    ):
        down = (down @ layer.weights) * on_array(activation.slope, a)
    if parts.dropped is not None:
        down = down * parts.dropped
    down = down[:, parts.live]
    if chain.first_bias is None:
        fit = np.sum(down * delta, axis=1) / np.maximum(np.sum(down**2, axis=1), 1e-300)
        down = np.maximum(fit, 0)[:, None] * down
    size = np.sqrt(np.mean(delta**2, axis=1))
    limit = np.clip(RETURN_SIGMAS * errors, *RETURN_LIMITS) * size
    return np.asarray((np.abs(down - delta) > limit[:, None]).mean(axis=1))


def _noise_beside(features: Array, rest: Array) -> float:
    """Return the standard deviation of what inputs (R, D) leave of a gradient, (K, D)."""
    freedom = max(features.shape[1] - len(features), 1)
    return float(np.sqrt(np.square(rest).sum() / (len(rest) * freedom)))


def _is_rounding(rest: Array, gradient: Array, std: Array) -> bool:
    """Say whether what is left of a gradient is no more than rounding or noise explains."""
    size = float(np.sqrt(np.mean(gradient**2)))
    typical = float(np.sqrt(np.mean(std**2)))
    limit = max(HEAD_LIMIT * typical, LEAST_HEAD * size)
    return bool(np.sqrt(np.mean(rest**2)) <= limit)
