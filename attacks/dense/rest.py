"""The directions of features that a label attack left out, in what the others leave of G.

What few examples add to the last layer's gradient has a row space of few dimensions r. Behind a
ReLU their features are non-negative and zero in many places, so each is an extreme ray of the cone
of non-negative vectors in it, orthogonal to the columns of its zeros: any r − 1 of these give it.
Drawing such sets at random finds it soon while r is small; the zeros that it then shows fix it
exactly. No label is asked: an image proves its direction by its own feature.
"""

from __future__ import annotations

import numpy as np
import torch

from attacks.numerics.softmax import softmax
from attacks.types import NotApplicable
from attacks.victim.gradients import Array, Layer

DRAWS = 4000
"""Sets of columns that are tried."""
MOST = 6
"""Largest dimension that is searched: half of the columns are zeros, 1 in 32 sets fits one ray."""
RANK = 1e-3
"""Singular values below this one, relative to the first, are errors of the known examples."""
RAY_ZERO = 1e-2
"""Entries below it, relative to the root mean square, count as zeros."""
SPARE_ZEROS = 8
"""Zeros that a ray has beyond the r − 1 that any vertex has."""


def rest_of_gradient(head: Layer, features: Array, labels: Array, batch: int) -> Array:
    """Return what the known examples leave of the last layer's gradient.

    Args:
        head: the last layer.
        features: (P, D), of the known examples.
        labels: (P, K), likewise.
        batch: B, above P.
    """
    x = head.augmented(features)
    delta = softmax(x @ head.weight.T) - labels
    return np.asarray(head.gradient - delta.T @ x / batch)


def rest_directions(rest: Array, missing: int, is_relu: bool, generator: torch.Generator) -> Array:
    """Return the unit features (r, n) behind a rest (K, n), r at most the number missing.

    Args:
        rest: not zero.
        missing: examples behind it.
        is_relu: whether features are non-negative and sparse.
        generator: draws sets of columns.

    Raises:
        NotApplicable: not all directions are found.
    """
    _, s, v = np.linalg.svd(rest, full_matrices=False)
    rank = int(np.sum(s > RANK * s[0]))
    if rank == 1:
        return np.asarray(v[:1] * np.sign(v[0].sum()))
    rays = np.empty((0, rest.shape[1]))
    if is_relu and rank <= min(missing, MOST):
        rays = _extreme_rays(v[:rank], generator)
    if len(rays) < rank:
        raise NotApplicable(
            f"the label attack left {missing} examples out, whose features aren't found in what "
            "the others leave of the gradient; a batch comes apart only as a whole"
        )
    return rays


def _extreme_rays(basis: Array, generator: torch.Generator) -> Array:
    """Return the sparsest non-negative unit vectors in the span of a basis (r, n), at most r."""
    rank, width = basis.shape
    sets = torch.rand(DRAWS, width, generator=generator).topk(rank - 1, dim=1).indices.numpy()
    q = np.linalg.svd(basis.T[sets])[2][:, -1]
    x = q @ basis
    x *= np.sign(x.sum(axis=1, keepdims=True))
    tolerance = RAY_ZERO / np.sqrt(width)
    zeros = np.abs(x) < tolerance
    fits = (x.min(axis=1) > -tolerance) & (zeros.sum(axis=1) >= rank - 1 + SPARE_ZEROS)
    rays: list[Array] = []
    for one in sorted(np.flatnonzero(fits), key=lambda row: -int(zeros[row].sum())):
        if len(rays) == rank or any(ray @ x[one] > 1 - 1e-4 for ray in rays):
            continue
        sharp = np.linalg.svd(basis[:, zeros[one]].T)[2][-1] @ basis
        rays.append(sharp * np.sign(sharp.sum()))
    return np.array(rays).reshape(-1, width)
