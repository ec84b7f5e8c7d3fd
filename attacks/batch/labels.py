"""Step 5: labels and scales, one scalar problem for each ray.

With Q the rays found and, below them, a basis of what is left, `B diag(r) U S Q⁻¹` has the columns
`α_b = s_b (p_b − y_b)`: with all examples found it is B G times the pseudo-inverse of their
directions. Each α_b and direction is the rank-one problem of a single example, whose solver detects
the augmentation and knows what noise and rounding leave open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from attacks.batch.accept import Example
from attacks.batch.rest import peel
from attacks.batch.subspace import Subspace
from attacks.numerics.least_squares import BAR
from attacks.one_example.problem import OWN_EPS, Problem
from attacks.victim.gradients import Array, as_double, as_numpy
from attacks.victim.network import Network


def rank_one_parts(
    space: Subspace, examples: Sequence[Example], factor: float, network: Network
) -> list[Problem]:
    """Split the gradient into the examples' parts, `B G / factor = Σ_b α_b g_bᵀ`.

    Args:
        space: the whole.
        examples: those found; explained unless they are all.
        factor: on the gradient.
        network: the head's weights.
    """
    rays = [example.ray for example in examples]
    explained = [e.explanation.mixture for e in examples if e.explanation is not None]
    below = np.empty((0, space.batch_size))
    if len(rays) < space.batch_size:
        below = peel(space, np.array(explained)).frame
    inverse = np.linalg.inv(np.vstack([[ray.q for ray in rays], below]))[:, : len(rays)]
    scale = space.divisor / factor
    alphas = scale * space.rows[:, None] * ((space.left * space.values) @ inverse)
    # Noise of G, and the errors of the other rays, which pass on a share of their own α.
    sizes = np.linalg.norm(inverse, axis=0)
    passed = np.linalg.norm(alphas * [ray.noise for ray in rays], axis=1)
    own = OWN_EPS * np.linalg.norm(alphas)
    errors = np.sqrt((scale * space.sigma * space.rows) ** 2 + passed**2 + own**2)[:, None] * sizes
    if len(below):
        # What is peeled off with an error is missing, or left over, in all others.
        wrong = max(e.explanation.bar for e in examples if e.explanation is not None) / BAR
        errors = np.hypot(errors, wrong * np.abs(alphas).max(axis=0))
    return [
        _layer(space, example, alpha, error, network)
        for example, alpha, error in zip(examples, alphas.T, errors.T, strict=True)
    ]


def with_single_precision_labels(part: Problem) -> Problem:
    """Return the problem with the errors that labels rounded to float32 leave in α."""
    rounding = float(np.finfo(np.float32).eps) * float(np.abs(part.α).max())
    return dataclasses.replace(part, σ_α=np.hypot(part.σ_α, rounding))


def _layer(
    space: Subspace, example: Example, alpha: Array, alpha_std: Array, network: Network
) -> Problem:
    """Return one example's scalar problem, with the direction's zeros set to 0."""
    ray, source = example.ray, space.source
    kept = np.append(space.live, True) if source.has_bias else space.live
    direction, std = np.zeros(len(kept)), np.zeros(len(kept))
    direction[kept] = np.where(ray.zeros, 0.0, space.columns * ray.direction)
    std[kept] = np.where(ray.zeros, 0.0, space.columns * ray.noise)
    size = float(np.linalg.norm(direction))
    alpha = (alpha - alpha.mean()) * size
    own = OWN_EPS * float(np.linalg.norm(alpha))
    direction_std = np.hypot(std / size, OWN_EPS * direction / size)
    sigma = float(np.linalg.norm(alpha) * np.linalg.norm(direction_std) / np.sqrt(len(direction)))
    head = network.head
    return Problem(
        alpha,
        direction / size,
        as_numpy(head.weight),
        as_double(head.bias) if source.has_bias else None,
        sigma,
        sigma,
        np.hypot(alpha_std * size, own),
        direction_std,
        max(space.source.eps, OWN_EPS),
        is_coarse=source.is_coarse,
    )
