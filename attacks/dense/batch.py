"""The first layer's inputs of a batch, from features of which some may be missing or parallel.

`attacks.dense.chain` takes a batch apart that is complete: with one feature missing every other
image is wrong. So those that are missing are looked for first (`attacks.dense.rest`), and of
examples with parallel features one stands for all.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.dense.chain import invert_chain
from attacks.dense.inputs import Inputs
from attacks.dense.network import FullyConnected
from attacks.dense.refit import refit_labels
from attacks.dense.rest import rest_directions, rest_of_gradient
from attacks.numerics.least_squares import BAR
from attacks.types import NotApplicable
from attacks.victim.gradients import Array

PARALLEL = 1e-5
"""Distance of unit rows below which they count as parallel: float32 features are exact to 1e-6."""
PARALLEL_REASON = (
    "its feature is parallel to another example's: the gradient holds only the sum of both"
)
WORST_SCALE = 0.05
"""Largest relative change of a scale that the labels may ask for."""
LEAST_BIAS = 1e-12
"""Share of a bias, whose input is 1, in an example's part of a gradient that isn't rounding."""


def invert_batch(
    network: FullyConnected, features: Array, labels: Array, generator: torch.Generator
) -> Inputs:
    """Find the first layer's inputs of a batch.

    Args:
        network: with its gradients.
        features: (B, D), the last layer's inputs, rows of NaN where they aren't known.
        labels: (B, K), likewise; where all features are known, they fix scales alone.
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
    has_label = np.asarray(np.isfinite(labels).all(axis=1))
    has_feature = np.isfinite(features).all(axis=1) & features.any(axis=1)
    with_label = np.flatnonzero(has_feature & has_label)
    known = with_label
    if has_feature.all():  # then nothing is asked of labels
        known = np.concatenate([with_label, np.flatnonzero(~has_label)])
    directions = _complete(network, features, labels, known, generator)
    twins = parallel_rows(network.layers[-1].augmented(directions))
    kept = [row for row in range(len(directions)) if row not in twins]
    a, noise = invert_chain(network, directions[kept], generator)
    scales, bars = np.ones(len(kept)), np.full(len(kept), np.nan)
    labelled = [row for row in kept if row < len(with_label)]
    is_whole = not network.kept or min(network.kept) == 1
    if len(features) > 1 and labelled and network.is_homogeneous and is_whole:
        scales, bars = image_scales(network, a, labels[known[labelled]], len(features))
    missing = np.setdiff1d(np.arange(len(features)), known)
    sizes = np.linalg.norm(directions, axis=1)
    count = len(features)
    inputs, noises = np.full((count, a.shape[1]), np.nan), np.zeros(count)
    given, scale_bar = np.full(features.shape, np.nan), np.full(count, np.nan)
    reasons: list[str | None] = [None] * count
    has_scale = network.layers[-1].has_bias and network.layers[0].has_bias
    # Back to the batch's rows; the missing ones come in any order.
    for row, example in enumerate([*known, *missing]):
        if row >= len(directions) or (row >= len(known) and not has_scale):
            reasons[example] = "the label attack didn't recover its feature"
            continue
        first = twins.get(row, row)
        one = kept.index(first)
        if row in twins or row in twins.values():
            reasons[example] = PARALLEL_REASON
        ratio = sizes[row] / sizes[first] if network.is_homogeneous else 1.0
        inputs[example] = ratio * scales[one] * a[one]
        noises[example] = ratio * scales[one] * noise[one]
        given[example] = directions[row] * scales[one]
        scale_bar[example] = bars[one]
    found, errors = torch.from_numpy(inputs), torch.from_numpy(noises)
    return Inputs(
        found, errors, torch.from_numpy(given), torch.from_numpy(scale_bar), tuple(reasons)
    )


def _complete(
    network: FullyConnected,
    features: Array,
    labels: Array,
    known: NDArray[np.intp],
    generator: torch.Generator,
) -> Array:
    """Return the known features, and behind them the directions of the missing ones.

    With a bias in the last layer these have their scale, without they are unit vectors.
    """
    missing = len(features) - len(known)
    if not missing:
        return features[known]
    head = network.layers[-1]
    rest = rest_of_gradient(head, features[known], labels[known], len(features))
    is_relu = bool(network.activations) and network.activations[-1].low == 0
    found = rest_directions(rest, missing, is_relu, generator)
    if head.has_bias:
        if not np.abs(found[:, -1]).min(initial=1.0) > LEAST_BIAS:
            raise NotApplicable(
                f"the label attack left {missing} examples out, and what the others leave of the "
                "gradient isn't theirs: its bias is zero"
            )
        found = found[:, :-1] / found[:, -1:]
    return np.vstack([features[known], found])


def image_scales(
    network: FullyConnected, a: Array, labels: Array, batch: int
) -> tuple[Array, Array]:
    """Return the factors on the inputs (N, n) that their labels ask for, and their error bars.

    Of the first inputs the labels are known; further ones keep the factor 1, and have no bar.

    The bar is no less than the change itself: two estimates have to agree. Where the labels' model
    doesn't fit, the factor stays 1.
    """
    scales, bars = np.ones(len(a)), np.full(len(a), np.nan)
    refit = refit_labels(network.layers[-1], network.forward(a)[-2], labels, batch)
    rows = len(labels)
    off = np.abs(refit.scales - 1)
    trusted = np.maximum(off, BAR * refit.bars) < WORST_SCALE
    scales[:rows] = np.where(trusted, refit.scales, 1.0)
    bars[:rows] = np.where(trusted, np.maximum(off, BAR * refit.bars), off)
    return scales, bars


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
