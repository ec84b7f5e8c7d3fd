"""Examples of one class each: labels that are told but for the class.

[ours] Without biases a free label leaves an input's scale open: `(p − y) / s` does on s x what
`p − y` does on x. A label that is told but for its class leaves neither open. A class counts as
certain where each other one, with the inputs as they would then have to be, to first order, leaves
much more than noise does:

    gain(c') = min over dα of |r + J_α dα + J_y (y_c' − y_c)|² − |r|².
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from attacks.numerics.least_squares import BAR
from attacks.rounds.problem import Rounds
from attacks.rounds.refine import (
    Fitted,
    Likelihood,
    fit,
    free_labels,
    require_finite,
    with_free_labels,
)
from attacks.unrolled.simulation import Unknowns

CLASS_TURNS = 3
"""How often classes that others explain better are changed."""


def labels_of_classes(classes: Tensor, count: int, smoothing: float) -> Tensor:
    """Return smoothed labels (n, K) of classes (n,)."""
    hard = torch.nn.functional.one_hot(classes, count).double()
    return (1 - smoothing) * hard + smoothing / count


def fit_classes(rounds: Rounds, start: Unknowns, smoothing: float) -> Fitted:
    """Refine a start whose labels are of one class each.

    Args:
        rounds: of a client.
        start: to begin with.
        smoothing: ε.

    Returns:
        With standard deviations of labels that are 0 where the class is certain.
    """
    classes, count = start.labels.argmax(dim=1), start.labels.shape[1]
    best: Fitted | None = None
    for _ in range(CLASS_TURNS):
        labels = labels_of_classes(classes, count, smoothing)
        now = dataclasses.replace(start, labels=labels)
        fitted = fit(rounds, now, label_ways=labels.new_zeros(*labels.shape, 0))
        if best is not None and not fitted.misfit < best.misfit:
            break
        best, gains = fitted, _gains(rounds, fitted, smoothing)
        certain = gains.amin(dim=1) > BAR**2 * max(fitted.excess, 1.0) ** 2
        other = gains.argmin(dim=1)
        is_better = gains.amin(dim=1) < 0
        std = torch.where(certain, 0.0, (1 - smoothing) / BAR)
        best = dataclasses.replace(best, label_std=std[:, None].expand_as(labels).numpy())
        if not is_better.any():
            break
        classes = torch.where(is_better, other, classes)
    assert best is not None
    return best


def _gains(rounds: Rounds, fitted: Fitted, smoothing: float) -> Tensor:
    """Return what other classes would add to the sum of squares, (n, K); infinite of its own."""
    rounds = rounds.spanned_by(fitted.inputs)
    labels = torch.from_numpy(fitted.labels)
    count, classes = labels.shape
    shares = torch.full((1, count), 1 / count, dtype=torch.float64)
    client = Unknowns(torch.from_numpy(fitted.inputs @ rounds.span.T), labels, shares)
    ways = free_labels(count, classes)
    client, directions = with_free_labels(rounds, client, ways)
    matrix, vector, _ = Likelihood.of(rounds).normal(client, directions)
    require_finite(matrix)
    more = ways.shape[2]
    own, cross, theirs = matrix[:-more, :-more], matrix[:-more, -more:], matrix[-more:, -more:]
    size = own.diagonal().clamp(min=1e-300).sqrt()
    inverse = torch.linalg.pinv(own / size / size[:, None], hermitian=True, rtol=1e-7)
    inverse = inverse / size / size[:, None]
    left = theirs - cross.T @ inverse @ cross
    slope = vector[-more:] - cross.T @ (inverse @ vector[:-more])
    gains = torch.full_like(labels, np.inf)
    for example, label in enumerate(labels):
        own_class = int(label.argmax())
        for other in set(range(classes)) - {own_class}:
            change = torch.zeros_like(labels)
            change[example, other] += 1 - smoothing
            change[example, own_class] -= 1 - smoothing
            step = torch.einsum("nkp,nk->p", ways, change)
            gains[example, other] = step @ left @ step + 2 * slope @ step
    return gains
