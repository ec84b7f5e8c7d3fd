"""Step 2: linear programs that end on extreme rays.

The optimum of a linear objective over a slice of the cone is a vertex, that is, a ray; the
objective decides how often it is a feature and not an accidental one. In the order of their
success:

* **rows of the gradient**: minimising ⟨G_k, x⟩ pulls to an example whose label is k, since
  `p − y` is negative there and nowhere else. What is found is peeled off before the next rows are
  drawn, so a class with several examples gives one after the other.
* **reweighting** (E. Candès, M. Wakin, S. Boyd, *Enhancing sparsity by reweighted ℓ1 minimization*,
  2008): from a solution that was no feature, `Σ_j x_j / (x_j⁰ + η)` leads to a sparser one nearby.
* **units**: maximising one x_j. It takes a space that is small against the number of units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from attacks.batch.rest import Rest
from attacks.batch.sharpen import Ray
from attacks.batch.subspace import Subspace
from attacks.numerics.interior_point import Slice, solve_programs
from attacks.victim.gradients import Array

SIDE_BY_SIDE = 16
"""Programs solved at a time."""
OPTIMALITY = 1e-5
"""Where a program stops, relative to its start: near enough to tell the zeros."""
REWEIGHTINGS = 3
UNIT_ROUNDS = 4
"""Rounds of random units, each reweighted, before the search ends."""
SHARE = 0.1
"""η of the reweighting, in means of x⁰."""
LEAST_OBJECTIVE = 1e-9
"""Size of an objective, relative to the largest, that says something: a class's row may be zero."""


def propose(
    space: Subspace, rest: Rest, unpeeled: Sequence[Ray], generator: torch.Generator
) -> Iterator[Array]:
    """Yield solutions (N, b) in the rest's coordinates, until there is nothing left to try.

    Args:
        space: the whole.
        rest: what isn't found.
        unpeeled: rays found that are still in the rest.
        generator: draws units.
    """
    if rest.size == 1:
        yield np.sign(rest.right.sum(axis=1, keepdims=True))
        return
    region = rest.region(space)
    known = np.array([ray.q for ray in unpeeled]).reshape(-1, space.batch_size) @ rest.frame.T
    basis = np.linalg.qr(known.T)[0]
    for share in (0.85, 0.7, 1.0) if len(known) else (0.0,):
        objectives = rest.rows - share * (rest.rows @ basis) @ basis.T
        sizes = np.linalg.norm(objectives, axis=1)
        objectives = objectives[sizes > LEAST_OBJECTIVE * sizes.max()]
        total = objectives @ region.normal
        order = np.argsort(total / np.linalg.norm(objectives, axis=1), kind="stable")
        for start in range(0, len(order), chunk := _chunk(rest)):
            solutions = solve_programs(
                region, objectives[order[start : start + chunk]], gap=OPTIMALITY
            )
            yield solutions
            if start == 0:
                first = solutions
    yield from _reweighted(region, first)
    for _ in range(UNIT_ROUNDS):
        units = torch.randperm(rest.right.shape[1], generator=generator)[: _chunk(rest)].numpy()
        solutions = solve_programs(region, -rest.right[:, units].T, gap=OPTIMALITY)
        yield solutions
        yield from _reweighted(region, solutions)


def _chunk(rest: Rest) -> int:
    return min(SIDE_BY_SIDE, max(4, rest.size * 3 // 2))


def _reweighted(region: Slice, solutions: Array) -> Iterator[Array]:
    for _ in range(REWEIGHTINGS):
        solutions = solutions[np.isfinite(solutions).all(axis=1)]
        if not len(solutions):
            return
        x = np.maximum(solutions @ region.columns, 0) * region.weights
        x /= x.mean(axis=1, keepdims=True)
        objectives = (region.weights / (x + SHARE)) @ region.columns.T
        solutions = solve_programs(region, objectives, gap=OPTIMALITY)
        yield solutions
