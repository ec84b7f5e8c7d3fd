"""What a bottleneck drew for each example, and the labels, by the derivatives at the encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.masks.equation import sums_of_zero
from attacks.masks.examples import Examples
from attacks.numerics.softmax import softmax
from attacks.types import NotApplicable
from attacks.variational.examples import Bottlenecked
from attacks.victim.gradients import Array

SPARE_VARIABLES = 3
"""Variables of a bottleneck beyond the K − 1 that e takes, at least: what tests it."""
DERIVATIVE_ROUNDINGS = 4.0
"""By which a client's derivatives are off in its own precision, of the root mean square: sums over
some hundred units."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """What is found of a batch's draws.

    Args:
        labels: y, (B, K).
        label_std: standard deviations of their entries.
        misfit: root mean square of what is left in standard deviations, of the equations where
            that is the most: about 1 of right ones.
    """

    labels: Array
    label_std: Array
    misfit: float


def drawn_of(network: Bottlenecked, found: Examples) -> Drawn:
    """Find labels by what draws leave.

    Args:
        network: with its gradients.
        found: the examples, up to the encoder, with the derivatives by its outputs.

    Raises:
        NotApplicable: the bottleneck is narrower than e.
    """
    size, head, decoder = network.size, network.head, network.decoder
    zero_sums = sums_of_zero(len(head.weight))
    if size < zero_sums.shape[1] + SPARE_VARIABLES:
        raise NotApplicable(
            f"a bottleneck of {size} variables doesn't show the errors of {len(head.weight)} "
            f"classes; that takes {SPARE_VARIABLES} more than {zero_sums.shape[1]}"
        )
    outputs = found.features @ network.below.layers[-1].weight.T
    mean, log_variance = outputs[:, :size], np.clip(outputs[:, size:], -60, 60)
    down = found.mixtures
    own = DERIVATIVE_ROUNDINGS * head.eps * np.sqrt(np.mean(down**2, axis=1, keepdims=True))
    spread = np.hypot(found.spread, own)
    back = decoder.weights.T @ head.weights.T  # M, (k, K)
    e, e_std, misfit = _errors(
        down[:, :size] - network.beta * mean, spread[:, :size], back, zero_sums
    )
    slope = (e @ back.T) / 2
    slope_std = np.sqrt(e_std**2 @ back.T**2) / 2
    rest = down[:, size:] - network.beta * (np.exp(log_variance) - 1) / 2
    std = np.hypot(spread[:, size:], slope_std * np.exp(log_variance / 2))
    z, z_std, misfit_of_draws = _draws(network, e, e_std, mean, (slope, rest, std))
    z_std = np.hypot(z_std, found.errors[:, None] * np.sqrt(np.mean(mean**2)))
    features = decoder.augmented(z) @ decoder.weight.T
    logits = head.augmented(features) @ head.weight.T
    p = softmax(logits)
    of_logits = p[:, :, None] * (np.eye(p.shape[1]) - p[:, None, :])  # (B, K, K)
    by_draws = np.sqrt((z_std**2) @ (back**2))
    label_std = np.hypot(np.sqrt((of_logits**2 @ by_draws[..., None] ** 2)[..., 0]), e_std)
    return Drawn(
        p - e, label_std, max(misfit, misfit_of_draws, _misfit_of_head(network, e, features, z_std))
    )


def _errors(given: Array, std: Array, back: Array, zero_sums: Array) -> tuple[Array, Array, float]:
    """Return e (B, K) with `M e` (B, k) as given, standard deviations, and the misfit."""
    found, stds, left = [], [], 0.0
    for row, own in zip(given, std, strict=True):
        weighted = back @ zero_sums / own[:, None]
        inverse = np.linalg.pinv(weighted)
        x = inverse @ (row / own)
        left += float(np.sum((row / own - weighted @ x) ** 2))
        found.append(zero_sums @ x)
        stds.append(np.linalg.norm(zero_sums @ inverse, axis=1))
    freedom = len(given) * (given.shape[1] - zero_sums.shape[1])
    return np.array(found), np.array(stds), float(np.sqrt(left / freedom))


def _draws(
    network: Bottlenecked,
    e: Array,
    e_std: Array,
    mean: Array,
    by_variance: tuple[Array, Array, Array],
) -> tuple[Array, Array, float]:
    """Return z (B, k), standard deviations, and the misfit.

    Each variable is told twice: for each example by its derivative by log σ², `slope (z − μ)`, and
    for all together by the decoder's gradient, `W_headᵀ Σ_b e_b z_bᵀ / B`.
    """
    slope, rest, std = by_variance
    batch, width = e.shape[0], mean.shape[1]
    zero_sums = sums_of_zero(e.shape[1])
    inverse = zero_sums.T @ np.linalg.pinv(network.head.weights.T)  # (K − 1, m)
    decoder = network.decoder
    told = batch * inverse @ decoder.gradient[:, :width] - zero_sums.T @ (e.T @ mean)
    rounding = float(np.sqrt(np.mean(decoder.rounding[:, :width] ** 2)))
    told_std = batch * rounding * np.linalg.norm(inverse, axis=1)
    spread = np.sqrt((e_std**2).sum(axis=0) @ zero_sums**2 * (1 + mean**2).mean())
    own = DERIVATIVE_ROUNDINGS * decoder.eps * np.sqrt(np.mean(told**2))
    told_std = np.sqrt(told_std**2 + spread**2 + own**2) + 1e-300
    design = np.zeros((width, batch + len(inverse), batch))
    design[:, np.arange(batch), np.arange(batch)] = (slope / std).T
    design[:, batch:] = (zero_sums.T @ e.T) / told_std[:, None]
    right = np.vstack([rest / std, told / told_std[:, None]]).T
    inverses = np.linalg.pinv(design)
    away = (inverses @ right[..., None])[..., 0]
    left = right - (design @ away[..., None])[..., 0]
    misfit = float(np.sqrt(np.sum(left**2) / (width * len(inverse))))
    return mean + away.T, np.linalg.norm(inverses, axis=2).T, misfit


def _misfit_of_head(network: Bottlenecked, e: Array, features: Array, z_std: Array) -> float:
    """Return what the last layer's gradient has beside `Σ_b e_b d_bᵀ / B`."""
    head, batch = network.head, len(e)
    rest = head.gradient - e.T @ head.augmented(features) / batch
    d_std = np.sqrt(z_std**2 @ (network.decoder.weights.T) ** 2)
    passed = np.sqrt((e**2).T @ head.augmented(d_std) ** 2) / batch
    own = DERIVATIVE_ROUNDINGS * head.eps * np.sqrt(np.mean(head.gradient**2))
    std = np.sqrt(head.rounding**2 + passed**2 + own**2)
    return float(np.sqrt(np.mean(rest**2) / np.mean(std**2)))
