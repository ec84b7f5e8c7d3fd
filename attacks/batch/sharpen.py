"""Step 3: an extreme ray from all its zeros at once.

A linear program ends near a ray. Its zeros Z name B − 1 equations and many more, so the ray is
their least-squares solution: with `x = Vᵀ q` and noise σ ‖S⁻¹ q‖ in every entry of x (total least
squares: the noise is even in G, not in V),

    min_q  ‖V_Zᵀ q‖² / ‖S⁻¹ q‖²,

the smallest generalised eigenvector of `V_Z V_Zᵀ` and `S⁻²`, by inverse iteration. Z is taken again
until it stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotrs

from attacks.batch.rest import Rest
from attacks.batch.subspace import Subspace
from attacks.victim.gradients import Array

FIRST_ZERO = 2e-3
"""Entries up to this many times the rms of x count as zeros of a program's solution."""
EXCESS = 4
"""Zeros that a ray must have beyond the dimension of the space."""
ZERO_SIGMAS = 6.0
"""Standard deviations of noise up to which an entry counts as zero."""
NEGATIVE_SIGMAS = 10.0
"""Standard deviations of noise by which an entry of a feature may be below 0."""
LEAST_ZERO = 1e-9
"""Relative to the rms of x, what float64 leaves of a zero, with margin."""
ZERO_ROUNDS = 10
INVERSE_ITERATIONS, REFINEMENTS = 6, 2


@dataclass(frozen=True, eq=False)
class Ray:
    """A candidate for the direction of a feature.

    Args:
        q: (B,), of norm 1; the whitened feature is `s Vᵀ q` with an unknown s > 0.
        direction: `Vᵀ q`, (D,), of norm 1; its zeros as they are found, not set to 0.
        zeros: Z, (D,).
        noise: standard deviation of the direction's entries.
        spread: second smallest singular value of V_Z: by how much Z determines q.
    """

    q: Array
    direction: Array
    zeros: NDArray[np.bool_]
    noise: float
    spread: float


def sharpen(space: Subspace, rest: Rest, solution: Array) -> Ray | None:
    """Sharpen a linear program's solution (b,) in the rest's coordinates; None if it is no ray.

    The zeros determine it in all of V where there are more than B of them: then what was peeled
    off, and with which error, doesn't matter. Otherwise in what is left.
    """
    if not np.isfinite(solution).all():
        return None
    x = solution @ rest.right
    x = x / np.linalg.norm(x)
    width = len(x)
    zeros = x <= FIRST_ZERO / np.sqrt(width)
    whole = zeros.sum() >= space.batch_size + EXCESS
    right = space.right if whole else rest.right
    frame = np.eye(space.batch_size) if whole else rest.frame
    q = frame @ (solution @ rest.frame)
    metric = (frame / space.values**2) @ frame.T
    least = LEAST_ZERO / np.sqrt(width)
    spread, noise = 0.0, 0.0
    for _ in range(ZERO_ROUNDS):
        found = _least(right[:, zeros], metric, q) if zeros.sum() >= len(q) + EXCESS else None
        if found is None:
            return None
        q, spread = found
        x = q @ right
        sign = 1.0 if x.sum() >= 0 else -1.0
        size = sign * np.linalg.norm(x)
        q, x = q / size, x / size
        noise = float(space.sigma * np.sqrt(q @ metric @ q))
        limit = max(ZERO_SIGMAS * noise, least, 4 * np.median(np.abs(x[zeros])))
        before, zeros = zeros, x <= limit
        if (zeros == before).all():
            break
    if zeros.sum() < len(q) + EXCESS or x.min() < -max(NEGATIVE_SIGMAS * noise, least):
        return None
    noise = max(noise, float(np.sqrt(np.mean(x[zeros] ** 2))))
    return Ray(q @ frame, x, zeros, noise, spread)


def _least(columns: Array, metric: Array, start: Array) -> tuple[Array, float] | None:
    """Return the smallest generalised eigenvector, near `start`, and the next singular value."""
    gram = columns @ columns.T
    gram.flat[:: len(gram) + 1] += 1e-15  # it may be singular: that is what is looked for
    factor, failed = dpotrf(gram)
    if failed:
        return None
    if len(start) == 1:
        return start, 1.0
    # A fixed vector that isn't parallel to any particular q.
    pair = np.stack([start, np.cos(np.arange(len(start)) ** 2.0)])
    for _ in range(INVERSE_ITERATIONS):
        pair = dpotrs(factor, metric @ pair.T)[0].T
        first = pair[0] / np.sqrt(pair[0] @ metric @ pair[0])
        second = pair[1] - first * (first @ metric @ pair[1])
        size = np.sqrt(second @ metric @ second)
        pair = np.stack([first, second / max(size, 1e-300)])
    first, second = pair[0], pair[1] / max(float(np.linalg.norm(pair[1])), 1e-300)
    for _ in range(REFINEMENTS):
        # The Gram matrix squares the condition; its residual, taken without it, doesn't.
        x = first @ columns
        weighted = metric @ first
        misfit = columns @ x - (x @ x) / (first @ weighted) * weighted
        first = first - dpotrs(factor, misfit)[0]
    return first, float(np.linalg.norm(second @ columns))
