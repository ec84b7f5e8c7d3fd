"""Roots of a gradient that was multiplied by an unknown factor, by clipping for example.

With `G = c (p − y) xᵀ` and c > 0 unknown, `α = κ (p(λ) − y)` with κ = c λ. Over the tied entries,
where y is τ, α is linear in p(λ). So for a given λ the rest is a linear regression, and

    ψ(λ) = Var(α) (1 − corr(α, p(λ))²)      over all classes but two

vanishes at a root. Which two is unknown: for given λ the pair that leaves the least is taken, at
least one of it among the classes of extreme α. The letters are those of
`attacks.labels.soft_label`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.numerics.search import minima_of, zoom
from attacks.one_example.fit import Root
from attacks.one_example.noise import expected_variance
from attacks.one_example.problem import Problem
from attacks.one_example.scan import NEAR, SATURATED, STEP, finer_steps
from attacks.victim.gradients import Array

FIRST_SPREAD = 1e-3
"""Spread of the logits where the scan starts; it ends where the softmax is saturated."""
LOWEST, HIGHEST = 4, 2
"""Classes of lowest and of highest α of which one belongs to the pair."""
PARTNERS = 256
"""Classes that may be the other one, at most: those of the most extreme α."""
MOST_ROOTS = 6


def scaled_roots(
    problem: Problem, signs: tuple[int, ...], given: Array | None = None
) -> list[Root]:
    """Find the roots of a gradient with an unknown factor.

    Args:
        problem: the rank-one problem.
        signs: of λ that are possible.
        given: λ (N,), where it is known already, as from a bias; None to scan.

    Returns:
        The roots, best first.
    """
    # Two classes left out leave a line through two points; equal logits, nothing to regress on.
    if len(problem.α) < 5 or not np.ptp(problem.logits) > 0:
        return []
    if given is not None:
        _, pairs, _ = _profile(problem, given)
        roots = [_root(problem, λ, pair) for λ, pair in zip(given, pairs, strict=True)]
        return [root for root in roots if root.s * root.λ > 0]
    found: list[tuple[float, Root]] = []
    for sign in signs:
        grid = _grid(problem, sign)
        ψ, pairs, one = _profile(problem, grid)
        # A second class with a small share makes a narrow dip, at the bottom of ψ for one class.
        bottoms = minima_of(one)
        bottoms = bottoms[np.argsort(one[bottoms])[:MOST_ROOTS]]
        fine = (grid[bottoms][:, None] * finer_steps()).ravel()
        fine_ψ, fine_pairs, _ = _profile(problem, fine)
        grid = np.concatenate([grid, fine])
        order = np.argsort(np.abs(grid), kind="stable")
        grid = grid[order]
        ψ = np.concatenate([ψ, fine_ψ])[order]
        pairs = np.concatenate([pairs, fine_pairs])[order]
        inner = minima_of(ψ)
        inner = inner[np.argsort(ψ[inner])[: 4 * MOST_ROOTS]]
        for index in inner:
            λ, value = _narrowed(problem, pairs[index], grid[index - 1 : index + 2 : 2])
            root = _root(problem, λ, pairs[index])
            if root.s * λ > 0 and value <= NEAR * _floor(problem, λ):
                found.append((value, root))
    found.sort(key=lambda pair: pair[0])
    return [root for _, root in found[:MOST_ROOTS]]


def _grid(problem: Problem, sign: int) -> Array:
    logits = np.sort(sign * problem.logits)
    spread, lead = logits[-1] - logits[0], logits[-1] - logits[-2]
    first = np.log(FIRST_SPREAD / spread)
    last = np.log(min(SATURATED / max(lead, 1e-300), 1e4 / spread))
    return np.asarray(sign * np.exp(np.arange(first, last, STEP)))


def _profile(problem: Problem, λ: Array) -> tuple[Array, NDArray[np.intp], Array]:
    """Return ψ for the best pair of classes, the pair (N, 2), and ψ for the best single class.

    For λ λ (N,).
    """
    α, p = problem.α, problem.p(λ)
    order = np.argsort(α)
    half = PARTNERS // 2
    partners = order if len(order) <= PARTNERS else np.concatenate([order[:half], order[-half:]])
    best, single = np.full((2, len(λ)), np.inf)
    pairs = np.zeros((len(λ), 2), dtype=np.intp)
    for a in {*order[:LOWEST].tolist(), *order[-HIGHEST:].tolist()}:
        # Sums over all classes but a, centred for precision, and less b's part for each b.
        kept = np.delete(np.arange(len(α)), a)
        some = partners[partners != a]
        α_mean, p_mean = α[kept].mean(), p[:, kept].mean(axis=1, keepdims=True)
        x, y = α - α_mean, p - p_mean
        count = len(kept) - 1
        xb, yb = x[some], y[:, some]
        xx, yy = float(x[kept] @ x[kept]), np.square(y[:, kept]).sum(axis=1)
        xy = y[:, kept] @ x[kept]
        single = np.minimum(single, _residual(xx, xy, yy) / len(kept))
        xx = xx - xb**2 * (1 + 1 / count)
        yy = yy[:, None] - yb**2 * (1 + 1 / count)
        xy = xy[:, None] - xb * yb * (1 + 1 / count)
        ψ = _residual(xx, xy, yy) / count
        b = ψ.argmin(axis=1)
        least = ψ[np.arange(len(λ)), b]
        better = least < best
        best[better] = least[better]
        pairs[better, 0], pairs[better, 1] = a, some[b[better]]
    return best.clip(0), pairs, single.clip(0)


def _residual(xx: Array | float, xy: Array, yy: Array) -> Array:
    """Return what is left of xx by regression, all of it where there is nothing to regress on."""
    return np.asarray(xx - np.divide(xy**2, yy, out=np.zeros_like(xy), where=yy > 0))


def _regress(problem: Problem, λ: Array, pair: NDArray[np.intp]) -> tuple[Array, Array]:
    """Regress α on p(λ) over all classes but a pair: return ψ and κ, (N,)."""
    p = np.delete(problem.p(λ), pair, axis=1)
    x = np.delete(problem.α, pair)
    x, y = x - x.mean(), p - p.mean(axis=1, keepdims=True)
    square = np.square(y).sum(axis=1)
    κ = np.divide(y @ x, square, out=np.zeros(len(λ)), where=square > 0)
    return np.square(x - κ[:, None] * y).mean(axis=1), κ


def _narrowed(problem: Problem, pair: NDArray[np.intp], ends: Array) -> tuple[float, float]:
    """Return λ and ψ at the minimum between two ends, (2,)."""
    λ = zoom(lambda λ: _regress(problem, λ, pair)[0], ends[:1], ends[1:], passes=9)
    return float(λ[0]), float(_regress(problem, λ, pair)[0][0])


def _root(problem: Problem, λ: float, pair: NDArray[np.intp]) -> Root:
    _, κ = _regress(problem, np.array([λ]), pair)
    # Without a slope there is no root: the wrong sign says so.
    return Root(float(λ), float(1 / κ[0]) if κ[0] else -float(np.sign(λ)))


def _floor(problem: Problem, λ: float) -> float:
    """Return what ψ is expected to be at a root."""
    at = np.array([λ])
    variance = expected_variance(problem, at, problem.p(at), np.arange(len(problem.α)))
    return float(np.sort(variance[0])[: max(len(problem.α) - 2, 1)].mean())
