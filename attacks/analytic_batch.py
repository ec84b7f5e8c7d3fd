"""The first layer's inputs of a batch, from features of which some may be missing or parallel.

`attacks.analytic_chain` takes a batch apart that is complete: with one feature missing every other
image is wrong. So the one that is missing is found first, in what the known examples leave of the
last layer's gradient, and of examples with parallel features one stands for all.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax

from attacks.analytic_chain import invert_chain
from attacks.fully_connected import FullyConnected, Layer
from attacks.label_refit import refit_labels
from attacks.rank_one import Array
from attacks.types import NotApplicable

PARALLEL = 1e-5
"""Distance of unit rows below which they count as parallel: float32 features are exact to 1e-6."""
REST = 1e-2
"""Second singular value, relative to the first, of what one missing example may leave."""
WORST_SCALE = 0.05
"""Largest relative change of a scale that the labels may ask for."""
SIGMAS = 4.0
"""Standard deviations in an error bar."""


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
    head = network.layers[-1]
    known = np.flatnonzero(
        np.isfinite(features).all(axis=1) & np.isfinite(labels).all(axis=1) & features.any(axis=1)
    )
    directions = features[known]
    if len(known) < len(features):
        rest = last_direction(head, features[known], labels[known], len(features))
        directions = np.vstack([directions, rest])
    twins = parallel_rows(head.augmented(directions))
    kept = [row for row in range(len(directions)) if row not in twins]
    a, noise = invert_chain(network, directions[kept], generator)
    scales, bars = np.ones(len(kept)), np.full(len(kept), np.nan)
    if len(features) > 1 and network.is_homogeneous and not head.has_bias:
        scales, bars = image_scales(
            network, a, labels[known[[k for k in kept if k < len(known)]]], len(features)
        )
    # Back to the batch's rows: each kept row, its twins, and the one that was missing.
    place = {row: kept.index(twins.get(row, row)) for row in range(len(directions))}
    result = _nothing(features, a.shape[1])
    reasons = list(result.reasons)
    for row, example in enumerate(known):
        one, scale = place[row], scales[place[row]]
        if row in twins or row in twins.values():
            reasons[example] = (
                "its features are parallel to another example's: the gradient holds only their sum"
            )
        if row in twins and network.is_homogeneous:
            scale *= np.linalg.norm(directions[row]) / np.linalg.norm(directions[twins[row]])
        result.inputs[example] = scale * a[one]
        result.features[example] *= scales[one]
        result.noise[example], result.scale_bars[example] = scale * noise[one], bars[one]
    missing = np.setdiff1d(np.arange(len(features)), known)
    for example in missing:
        reasons[example] = "the label attack didn't recover its feature"
    last = len(known)
    if len(missing) == 1 and last in kept and head.has_bias and network.layers[0].has_bias:
        reasons[missing[0]] = None
        result.inputs[missing], result.noise[missing] = a[-1], noise[-1]
        result.features[missing] = directions[-1]
    return dataclasses.replace(result, reasons=tuple(reasons))


def _nothing(features: Array, width: int) -> BatchInputs:
    batch = len(features)
    return BatchInputs(
        np.full((batch, width), np.nan),
        np.zeros(batch),
        features.copy(),
        np.full(batch, np.nan),
        (None,) * batch,
    )


def image_scales(
    network: FullyConnected, a: Array, labels: Array, batch: int
) -> tuple[Array, Array]:
    """Return the factors on the inputs (N, n) that their labels ask for, and their error bars.

    Of the first inputs the labels are known; a further one keeps the factor 1, and no bar.

    The bar is no less than the change itself: two estimates have to agree. Where the labels' model
    doesn't fit, the factor stays 1.
    """
    scales, bars = np.ones(len(a)), np.full(len(a), np.nan)
    refit = refit_labels(network.layers[-1], network.forward(a)[-2], labels, batch)
    rows = len(labels)
    off = np.abs(refit.scales - 1)
    trusted = np.maximum(off, SIGMAS * refit.bars) < WORST_SCALE
    scales[:rows] = np.where(trusted, refit.scales, 1.0)
    bars[:rows] = np.where(trusted, np.maximum(off, SIGMAS * refit.bars), off)
    return scales, bars


def last_direction(head: Layer, features: Array, labels: Array, batch: int) -> Array:
    """Return the feature (1, D) that the known examples leave of the head's gradient.

    Where one example is missing, or several with parallel features, what is left has rank one. With
    a bias it comes at its scale, without as a unit vector.

    Args:
        head: the last layer.
        features: (P, D), the known ones.
        labels: (P, K), likewise.
        batch: B, above P.

    Raises:
        NotApplicable: more is left.
    """
    x = head.augmented(features)
    delta = softmax(x @ head.weight.T, axis=1) - labels
    rest = head.gradient - delta.T @ x / batch
    _, s, v = np.linalg.svd(rest, full_matrices=False)
    if s[1] > REST * s[0]:
        raise NotApplicable(
            f"the label attack left {batch - len(features)} of {batch} examples out; a batch comes "
            "apart only when no more than one is"
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
