"""What is answered of the examples of all rounds.

RECOVERED needs both: error bars below the tolerance, of `BAR` standard deviations, and rounds that
leave no more than noise, and the masks that such errors set wrong. Another example, or a class that
is wrong, leaves many times that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attacks.answers import (
    ExampleImage,
    ExampleLabel,
    LabelRecovery,
    Reconstruction,
    Status,
    known,
)
from attacks.dense.pixel_range import in_range
from attacks.facts import Told
from attacks.numerics.least_squares import BAR
from attacks.rounds.classes import fit_classes
from attacks.rounds.problem import Rounds
from attacks.rounds.refine import MOST_ERROR_OF_INPUTS, Fitted, fit, free_labels
from attacks.rounds.start import rough_examples
from attacks.types import GradientLeak
from attacks.unrolled.answer import order_of
from attacks.victim.kept import kept_with
from attacks.victim.network import Network
from attacks.victim.pixel_map import STRAYS, PixelMap

MOST_MISFIT_OF_ROUNDS = 6.0
"""Misfit of the right examples, at most; see `Rest`."""
SEARCHES = 2
"""Of the search for examples, at most, as long as they leave more than noise."""
LEAST_OF_DIRECTIONS = 1.0
"""What the examples leave in each direction that they span, at least, in what noise leaves there;
in directions of noise alone it is far less."""
STRAY_BARS = 3.0
"""How far pixels may leave [0, 1], in the image's error."""


@dataclass(frozen=True, eq=False)
class Found:
    """The examples behind all rounds.

    Args:
        inputs: of the first layer, without the bias's 1, (n, d).
        features: of the last, at the latest round's weights, (n, D).
        labels: (n, K).
        input_bars: error bars of the inputs, root mean square, (n,).
        label_bars: of the labels, L∞, (n,).
        misfit: see `Fitted`.
        reason: why nothing is claimed; None where the rounds leave no more than noise does.
    """

    inputs: Tensor
    features: Tensor
    labels: Tensor
    input_bars: Tensor
    label_bars: Tensor
    misfit: float
    reason: str | None


def found_in_rounds(leak: GradientLeak) -> Found:
    """Find the examples behind a leak and the earlier ones of its client; kept with the leak.

    Draws are its own, so that all attacks find the same.

    Raises:
        NotApplicable: the rounds can't be combined, don't share their examples, or noise hides
            these.
    """
    return kept_with(leak, "_rounds", lambda: _found(leak))


def _found(leak: GradientLeak) -> Found:
    rounds = Rounds.of([*(leak.earlier or ()), leak])
    fitted = _fitted(rounds, leak.told, 0)
    for seed in range(1, SEARCHES):
        if _hidden(rounds) or fitted.misfit <= MOST_MISFIT_OF_ROUNDS:
            break
        fitted = min(fitted, _fitted(rounds, leak.told, seed), key=lambda one: one.misfit)
    inputs = fitted.inputs[:, : fitted.inputs.shape[1] - rounds.has_bias]
    return Found(
        torch.from_numpy(np.ascontiguousarray(inputs)),
        torch.from_numpy(rounds.last.forward(inputs)[-2]),
        torch.from_numpy(fitted.labels),
        torch.from_numpy(BAR * fitted.input_std),
        torch.from_numpy(BAR * fitted.label_std.max(axis=1)),
        fitted.misfit,
        _doubt(rounds, fitted),
    )


def _fitted(rounds: Rounds, told: Told, seed: int) -> Fitted:
    start = rough_examples(rounds, torch.Generator().manual_seed(seed))
    smoothing = told.smoothing_of_classes
    if smoothing is None:
        return fit(rounds, start, label_ways=free_labels(*start.labels.shape))
    return fit_classes(rounds, start, smoothing)


def _doubt(rounds: Rounds, fitted: Fitted) -> str | None:
    """Return why nothing is claimed; None where nothing speaks against it."""
    hidden = _hidden(rounds)
    if hidden is not None:
        return hidden
    worst = float(fitted.errors.max())
    if not worst <= MOST_ERROR_OF_INPUTS:
        return (
            f"noise leaves inputs of an example uncertain by {worst:.0%}, more than "
            f"{MOST_ERROR_OF_INPUTS:.0%}: it may not be there"
        )
    if fitted.misfit <= MOST_MISFIT_OF_ROUNDS:
        return None
    return (
        f"at these examples {rounds.count} rounds leave {fitted.misfit:.2g} times as much beyond "
        f"the noise as errors of their size explain, more than {MOST_MISFIT_OF_ROUNDS:g}"
    )


def _hidden(rounds: Rounds) -> str | None:
    """Say where an example may not be there: it would add a direction of noise, and fit it."""
    rows = sum(one.rows for one in rounds.each) * rounds.count / len(rounds.each)
    clear = int((rounds.signal > LEAST_OF_DIRECTIONS * rows).sum())
    if clear == rounds.examples:
        return None
    return (
        f"{rounds.count} rounds show {clear} of the {rounds.examples} directions that as many "
        "examples span: noise hides the others, or there are fewer examples"
    )


def labels_of_rounds(leak: GradientLeak, *, tolerance: float) -> LabelRecovery:
    """Return a label for each example that all rounds share.

    Args:
        leak: with the earlier ones of its client.
        tolerance: L∞ error of a label that RECOVERED stays below.

    Raises:
        NotApplicable: as `found_in_rounds` does.
    """
    found = found_in_rounds(leak)
    rows = zip(found.labels, found.features, found.label_bars.tolist(), strict=True)
    return LabelRecovery.of([_label(*row, found, tolerance) for row in rows])


def _label(
    label: Tensor, feature: Tensor, bar: float, found: Found, tolerance: float
) -> ExampleLabel:
    if not (label.isfinite().all() and feature.isfinite().all()):
        return ExampleLabel(Status.NOT_CONVERGED, "the steps towards the examples went astray")
    status, reason = Status.RECOVERED, None
    if found.reason is not None:
        status, reason = Status.NOT_CONVERGED, found.reason
    elif not bar <= tolerance:
        status = Status.NOT_IDENTIFIABLE
        reason = f"the label's error is estimated at {bar:.2g}, more than {tolerance:.2g}"
    return ExampleLabel(
        status,
        reason,
        label=label,
        feature=feature,
        label_bar=known(bar) if found.reason is None else None,
        residual=known(max(found.misfit, 0.0)),
    )


def images_of_rounds(
    leak: GradientLeak, network: Network, labels: LabelRecovery, *, tolerance: float
) -> Reconstruction:
    """Return an image for each example that all rounds share, in the label recovery's order.

    Args:
        leak: with the earlier ones of its client.
        network: a view of its model.
        labels: of any attack; only their order counts.
        tolerance: root mean square error that RECOVERED stays below.

    Raises:
        NotApplicable: as `found_in_rounds` does, or pixels don't follow from the first layer.
    """
    inverse = PixelMap.of(network, network.executed[0])
    found = found_in_rounds(leak)
    images = inverse.pixels(found.inputs)
    errors = found.input_bars * inverse.worth
    slack = torch.maximum(STRAY_BARS * errors, torch.tensor(tolerance))
    images, strays, (low, high) = in_range(images, slack, is_told=leak.normalization is not None)
    rows = [
        _image(image, error, is_stray, found, tolerance)
        for image, error, is_stray in zip(
            images, (errors / (high - low)).tolist(), strays.tolist(), strict=True
        )
    ]
    order = order_of(labels, found.features, found.labels)
    return Reconstruction.of([rows[i] for i in order], pixel_range=(low, high))


def _image(
    image: Tensor, error: float, is_stray: bool, found: Found, tolerance: float
) -> ExampleImage:
    if not image.isfinite().all():
        return ExampleImage(Status.NOT_CONVERGED, "the steps towards the examples went astray")
    bar = known(error) if found.reason is None else None
    if found.reason is not None or is_stray:
        return ExampleImage(Status.NOT_CONVERGED, found.reason or STRAYS, image, error=bar)
    if not error <= tolerance:
        reason = f"the image's error is estimated at {error:.2g}, more than {tolerance:.2g}"
        return ExampleImage(Status.NOT_IDENTIFIABLE, reason, image, error=bar)
    return ExampleImage(Status.RECOVERED, None, image, error=error)
