"""Roots of a gradient that was multiplied by an unknown factor, by clipping for example.

With `G = c (p − y) xᵀ` and c > 0 unknown, `α = κ (p(λ) − y)` with κ = c λ. Over the tied entries,
where y is τ, α is linear in p(λ). So for a given λ the rest is a linear regression, and

    ψ(λ) = Var(α) (1 − corr(α, p(λ))²)      over all classes but two

vanishes at a root. Which two is unknown: for given λ the pair that leaves the least is taken, at
least one of it among the classes of extreme α. The letters are those of `attacks.soft_label`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attacks.label_fit import Root, softmax
from attacks.label_noise import expected_variance
from attacks.label_scan import STEP, finer_steps, minima_of
from attacks.last_layer import LastLayer
from attacks.rank_one import Array

SPREADS = (1e-3, 60.0)
"""Spread of the logits where the scan starts, and lead of the largest where it ends."""
LOWEST, HIGHEST = 4, 2
"""Classes of lowest and of highest α of which one belongs to the pair."""
PARTNERS = 256
"""Classes that may be the other one, at most: those of the most extreme α."""
NEAR = 1e3
"""Minima of ψ up to this many times its expected value at a root are fitted."""
MOST_ROOTS = 6


def scaled_roots(
    layer: LastLayer, signs: tuple[int, ...], given: Array | None = None
) -> list[Root]:
    """Find the roots of a gradient with an unknown factor.

    Args:
        layer: the rank-one problem.
        signs: of λ that are possible.
        given: λ (N,), where it is known already, as from a bias; None to scan.

    Returns:
        The roots, best first.
    """
    # Two classes left out leave a line through two points; equal logits, nothing to regress on.
    if len(layer.alpha) < 5 or not np.ptp(layer.logits) > 0:
        return []
    if given is not None:
        _, pairs, _ = _profile(layer, given)
        roots = [_root(layer, scale, pair) for scale, pair in zip(given, pairs, strict=True)]
        return [root for root in roots if root.s * root.scale > 0]
    found: list[tuple[float, Root]] = []
    for sign in signs:
        grid = _grid(layer, sign)
        psi, pairs, one = _profile(layer, grid)
        # A second class with a small share makes a narrow dip, at the bottom of ψ for one class.
        bottoms = minima_of(one)
        bottoms = bottoms[np.argsort(one[bottoms])[:MOST_ROOTS]]
        fine = (grid[bottoms][:, None] * finer_steps()).ravel()
        fine_psi, fine_pairs, _ = _profile(layer, fine)
        grid = np.concatenate([grid, fine])
        order = np.argsort(np.abs(grid), kind="stable")
        grid = grid[order]
        psi = np.concatenate([psi, fine_psi])[order]
        pairs = np.concatenate([pairs, fine_pairs])[order]
        inner = minima_of(psi)
        inner = inner[np.argsort(psi[inner])[: 4 * MOST_ROOTS]]
        for index in inner:
            scale, value = _zoom(layer, pairs[index], grid[index - 1], grid[index + 1])
            root = _root(layer, scale, pairs[index])
            if root.s * scale > 0 and value <= NEAR * _floor(layer, scale):
                found.append((value, root))
    found.sort(key=lambda pair: pair[0])
    return [root for _, root in found[:MOST_ROOTS]]


def _grid(layer: LastLayer, sign: int) -> Array:
    logits = np.sort(sign * layer.logits)
    spread, lead = logits[-1] - logits[0], logits[-1] - logits[-2]
    first = np.log(SPREADS[0] / spread)
    last = np.log(min(SPREADS[1] / max(lead, 1e-300), 1e4 / spread))
    return np.asarray(sign * np.exp(np.arange(first, last, STEP)))


def _profile(layer: LastLayer, scales: Array) -> tuple[Array, NDArray[np.intp], Array]:
    """Return ψ for the best pair of classes, the pair (N, 2), and ψ for the best single class.

    For scales λ (N,).
    """
    alpha, p = layer.alpha, softmax(np.multiply.outer(scales, layer.logits))
    order = np.argsort(alpha)
    half = PARTNERS // 2
    partners = order if len(order) <= PARTNERS else np.concatenate([order[:half], order[-half:]])
    best, single = np.full((2, len(scales)), np.inf)
    pairs = np.zeros((len(scales), 2), dtype=np.intp)
    for a in {*order[:LOWEST].tolist(), *order[-HIGHEST:].tolist()}:
        # Sums over all classes but a, centred for precision, and less b's part for each b.
        kept = np.delete(np.arange(len(alpha)), a)
        some = partners[partners != a]
        alpha_mean, p_mean = alpha[kept].mean(), p[:, kept].mean(axis=1, keepdims=True)
        x, y = alpha - alpha_mean, p - p_mean
        count = len(kept) - 1
        xb, yb = x[some], y[:, some]
        xx, yy = float(x[kept] @ x[kept]), np.square(y[:, kept]).sum(axis=1)
        xy = y[:, kept] @ x[kept]
        single = np.minimum(single, _residual(xx, xy, yy) / len(kept))
        xx = xx - xb**2 * (1 + 1 / count)
        yy = yy[:, None] - yb**2 * (1 + 1 / count)
        xy = xy[:, None] - xb * yb * (1 + 1 / count)
        psi = _residual(xx, xy, yy) / count
        b = psi.argmin(axis=1)
        least = psi[np.arange(len(scales)), b]
        better = least < best
        best[better] = least[better]
        pairs[better, 0], pairs[better, 1] = a, some[b[better]]
    return best.clip(0), pairs, single.clip(0)


def _residual(xx: Array | float, xy: Array, yy: Array) -> Array:
    """Return what is left of xx by regression, all of it where there is nothing to regress on."""
    return np.asarray(xx - np.divide(xy**2, yy, out=np.zeros_like(xy), where=yy > 0))


def _regress(layer: LastLayer, scales: Array, pair: NDArray[np.intp]) -> tuple[Array, Array]:
    """Regress α on p(λ) over all classes but a pair: return ψ and κ, (N,)."""
    p = np.delete(softmax(np.multiply.outer(scales, layer.logits)), pair, axis=1)
    x = np.delete(layer.alpha, pair)
    x, y = x - x.mean(), p - p.mean(axis=1, keepdims=True)
    square = np.square(y).sum(axis=1)
    kappa = np.divide(y @ x, square, out=np.zeros(len(scales)), where=square > 0)
    return np.square(x - kappa[:, None] * y).mean(axis=1), kappa


def _zoom(layer: LastLayer, pair: NDArray[np.intp], low: float, high: float) -> tuple[float, float]:
    """Narrow the bracket (low, high) of λ, eightfold a pass; return λ and ψ there."""
    for _ in range(9):
        points = np.geomspace(low, high, 17)
        values, _ = _regress(layer, points, pair)
        least = int(values.argmin().clip(1, 15))
        low, high = points[least - 1], points[least + 1]
    return float(points[least]), float(values[least])


def _root(layer: LastLayer, scale: float, pair: NDArray[np.intp]) -> Root:
    _, kappa = _regress(layer, np.array([scale]), pair)
    # Without a slope there is no root: the wrong sign says so.
    return Root(float(scale), float(1 / kappa[0]) if kappa[0] else -float(np.sign(scale)))


def _floor(layer: LastLayer, scale: float) -> float:
    """Return what ψ is expected to be at a root."""
    scales = np.array([scale])
    p = softmax(np.multiply.outer(scales, layer.logits))
    variance = expected_variance(layer, scales, p, np.arange(len(layer.alpha)))
    return float(np.sort(variance[0])[: max(len(layer.alpha) - 2, 1)].mean())
