"""Every example's part of a hidden layer's gradient by its input, where that comes out of a ReLU.

In `∂L/∂W_l = (1/B) Σ_b δ_b a_bᵀ` either factor tells the examples apart. Where a mask of many units
says which δ_b is one example's, so do the zeros of its input: non-negative `a_b` are extreme rays
of the cone in the row space, as the last layer's features are (`attacks.batch`), however few units
the layer has, down to B, and whatever stands behind them.

A ray has its layer's mask, too. Where units are enough that a mask not every δ fits, at least
R + r, it takes the place of the label that explains a ray: `(I − P) U q = 0`, P the projection on
what the mask leaves of T (`equation`), has the example's q for its solution, and no other ray has
one. So an example is peeled off when it is found, and the rest gets easier. Else rays stand for
themselves, and the way back through the network says of all together whether one is false
(`examples`).

Measured, float32 gradients of digits: of `lenet5`'s 120 units behind 400 inputs under PyTorch's
initialisation and after training, all of 24, 32 and 40 examples, where the layer's masks alone show
none of 32. Where the inputs' zeros are the same for all examples, as in `vgg11` under PyTorch's
initialisation, neither form tells them apart.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.batch.propose import propose
from attacks.batch.recover import require_sparse
from attacks.batch.rest import peel
from attacks.batch.sharpen import Ray, sharpen
from attacks.batch.subspace import Subspace, hidden_subspace
from attacks.dense.network import FullyConnected
from attacks.masks.equation import NOISE_FROM, handed_down
from attacks.masks.examples import Parts
from attacks.masks.polish import MISFIT_BOUNDS, NOISE_LIMIT
from attacks.types import NotApplicable
from attacks.victim.gradients import Array
from attacks.victim.network import Network

ZEROS_EACH = 1.5
"""Zeros of a ray for each dimension, at least: an accidental one has as many as there are, and few
more; examples have several times that."""
ODD_SHARE = 0.5
"""Of the rays' median number of zeros, what each has at least."""
ROWS_EACH = 2
"""Rows of the gradient that are objectives, for each dimension."""
NEW_RAY = 1e-3
"""Distance of a ray from the span of those found below which it isn't new."""
SPARE_TO_TEST = 8
"""Units beyond the R + r unknowns of a pair, from which a ray's own mask tests it."""


@dataclass(frozen=True, eq=False)
class MaskTest:
    """What tells by its mask whether a ray is an example's, and which δ is its.

    Args:
        space: of the layer's gradient, its live units alone, (D, R).
        weight: of these, whitened, (D, n).
        targets: T, (D, r).
        low: the activation's slope below 0.
        limit: of the misfit.
        live: which of all units these are.
    """

    space: Array
    weight: Array
    targets: Array
    low: float
    limit: float
    live: NDArray[np.bool_]

    @classmethod
    def of(cls, space: Subspace, chain: FullyConnected) -> MaskTest | None:
        """Return the test of a chain's first layer; None where it has too few units for one."""
        low, above = chain.activations[0].low, chain.layers[1]
        live = np.asarray(space.source.gradient.any(axis=1))
        rows, size = space.rows[live], space.batch_size
        targets, error = handed_down(above, size, live, rows, len(chain.layers) == 2)
        unknowns = size + targets.shape[1]
        if low is None or not low < 1 or live.sum() < unknowns + SPARE_TO_TEST:
            return None
        low_limit, high_limit = MISFIT_BOUNDS
        limit = float(np.clip(NOISE_LIMIT * (space.precision + error), low_limit, high_limit))
        weight = space.logit_weight[live]
        return cls(space.left[live], weight, targets, low, limit, live)

    def mixture(self, ray: Ray) -> Array | None:
        """Return the q (R,) of a ray's δ; None where its mask fits none."""
        outputs = self.weight @ np.where(ray.zeros, 0.0, ray.direction)
        basis = np.linalg.qr(np.where(outputs > 0, 1.0, self.low)[:, None] * self.targets)[0]
        off = self.space - basis @ (basis.T @ self.space)
        _, values, right = np.linalg.svd(off, full_matrices=False)
        return np.asarray(right[-1]) if values[-1] <= self.limit else None


def parts_by_rays(
    chain: FullyConnected, network: Network, told: int | None, generator: torch.Generator
) -> Parts:
    """Find all inputs of a chain's first layer by their zeros, and the δ that belong to them.

    Args:
        chain: from that layer to the logits.
        network: a view of the model.
        told: B; None where it is to be found.
        generator: draws objectives.

    Raises:
        NotApplicable: its inputs aren't sparse and non-negative, its gradient isn't that of B
            examples, or not all are found.
    """
    layer = chain.layers[0]
    require_sparse(network.probed(layer.name), f"layer {layer.name!r}")
    space = hidden_subspace(layer, told)
    rays = _find(space, MaskTest.of(space, chain), generator)
    if len(rays) < space.batch_size:
        raise NotApplicable(
            f"the zeros of layer {layer.name!r}'s inputs show {len(rays)} of "
            f"{space.batch_size} examples"
        )
    return _parts(space, rays)


def _find(space: Subspace, test: MaskTest | None, generator: torch.Generator) -> list[Ray]:
    """Propose, sharpen and test in turns, until all rays are found or nothing new comes."""
    found: list[Ray] = []
    mixtures: list[Array] = []
    while len(found) < space.batch_size:
        before = len(found)
        rest = peel(space, np.array(mixtures).reshape(-1, len(space.rows)))
        rest = dataclasses.replace(rest, rows=_objectives(rest.rows))
        for solutions in propose(space, rest, [] if test else found, generator):
            for solution in solutions:
                ray = sharpen(space, rest, solution)
                if ray is None or not _is_new(space, ray, found):
                    continue
                q = None if test is None else test.mixture(ray)
                if test is None or q is not None:
                    found.append(ray)
                if q is not None:
                    mixtures.append(space.left @ q)
            if len(found) > before:
                break
        if test is None:
            found = _without_odd(found)
        if len(found) <= before:
            break
    return found[: space.batch_size]


def _objectives(rows: Array) -> Array:
    """Return some rows of a gradient (m, b): there are more units than classes.

    Of δ both signs pull to an example, where p − y is negative at its label alone.
    """
    largest = np.argsort(-np.linalg.norm(rows, axis=1), kind="stable")[: ROWS_EACH * rows.shape[1]]
    return np.asarray(np.vstack([rows[largest], -rows[largest]]))


def _is_new(space: Subspace, ray: Ray, found: list[Ray]) -> bool:
    """Say whether a ray has the zeros of an example, and isn't in the span of those found."""
    if ray.zeros.sum() < ZEROS_EACH * space.batch_size:
        return False
    if not found:
        return True
    basis = np.linalg.qr(np.array([other.q for other in found]).T)[0]
    outside = ray.q - basis @ (basis.T @ ray.q)
    return bool(np.linalg.norm(outside) > NEW_RAY * np.linalg.norm(ray.q))


def _without_odd(found: list[Ray]) -> list[Ray]:
    """Leave rays out that have far fewer zeros than the others."""
    counts = np.array([ray.zeros.sum() for ray in found])
    least = ODD_SHARE * np.median(counts) if found else 0.0
    return [ray for ray, count in zip(found, counts, strict=True) if count >= least]


def _parts(space: Subspace, rays: list[Ray]) -> Parts:
    """Return inputs and δ of all rays; with a bias, its input is 1."""
    source = space.source
    shown = np.array([np.where(ray.zeros, 0.0, ray.direction) for ray in rays])
    noise = np.array([ray.noise for ray in rays])
    a = shown * space.columns
    sizes = np.linalg.norm(a, axis=1)
    errors = noise * np.linalg.norm(space.columns) / sizes
    scale = 1 / sizes
    if source.has_bias:
        if not (shown[:, -1] > 0).all():
            raise NotApplicable(f"a ray of layer {source.name!r}'s inputs has no bias")
        scale = 1 / a[:, -1]
        errors = np.hypot(errors, noise / shown[:, -1])
    inputs = np.zeros((len(rays), len(space.live)))
    inputs[:, space.live] = (a * scale[:, None])[:, : int(space.live.sum())]
    delta, misfits = _deltas(space, rays, noise)
    live = np.asarray(source.gradient.any(axis=1))
    is_noisy = space.sigma > NOISE_FROM
    rounding = float(np.sqrt(np.mean(source.rounding**2)))
    return Parts(
        inputs,
        (space.divisor * delta / scale[:, None])[:, live],
        errors,
        misfits,
        np.ones(len(rays), dtype=bool),
        live,
        space.sigma * rounding if is_noisy else 0.0,
        1 / space.sigma if is_noisy else 1.0,
    )


def _deltas(space: Subspace, rays: list[Ray], noise: Array) -> tuple[Array, Array]:
    """Return `(diag(r) U S Q⁻¹)ᵀ`, (R, m), and its rows' relative errors (R,)."""
    inverse = np.linalg.inv(np.array([ray.q for ray in rays]))
    parts = (space.left * space.values) @ inverse
    passed = np.linalg.norm(parts * noise, axis=1)
    wrong = np.linalg.norm(np.hypot(space.sigma, passed)) * np.linalg.norm(inverse, axis=0)
    return (space.rows[:, None] * parts).T, wrong / np.linalg.norm(parts, axis=0)
