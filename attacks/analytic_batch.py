"""The first layer's inputs of a batch, from features of which some may be missing or parallel.

`attacks.analytic_chain` takes a batch apart that is complete: with one feature missing every other
image is wrong. So those that are missing are looked for first (`attacks.analytic_rest`), and of
examples with parallel features one stands for all.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from attacks.analytic_chain import invert_chain
from attacks.analytic_rest import rest_directions, rest_of_gradient
from attacks.fully_connected import FullyConnected
from attacks.label_refit import refit_labels
from attacks.rank_one import Array
from attacks.types import NotApplicable

PARALLEL = 1e-5
"""Distance of unit rows below which they count as parallel: float32 features are exact to 1e-6."""
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
        rest = rest_of_gradient(head, features[known], labels[known], len(features))
        is_relu = bool(network.activations) and network.activations[-1].low == 0
        found = rest_directions(rest, len(features) - len(known), is_relu, generator)
        if head.has_bias:
            found = found[:, :-1] / found[:, -1:]
        directions = np.vstack([directions, found])
    twins = parallel_rows(head.augmented(directions))
    kept = [row for row in range(len(directions)) if row not in twins]
    a, noise = invert_chain(network, directions[kept], generator)
    scales, bars = np.ones(len(kept)), np.full(len(kept), np.nan)
    if len(features) > 1 and network.is_homogeneous:
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
    has_scale = head.has_bias and network.layers[0].has_bias
    for row, example in enumerate(missing, start=len(known)):
        reasons[example] = "the label attack didn't recover its feature"
        if has_scale and row in kept:
            reasons[example] = None
            result.inputs[example], result.noise[example] = a[place[row]], noise[place[row]]
            result.features[example] = directions[row]
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
