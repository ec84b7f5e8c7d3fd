"""Does what was found follow from what was sent: a fit as exact as rounding, equations enough?

With J the derivative of the gradient by all that is unknown, each equation over its standard
deviation, and r what is left of the gradient at what was found, likewise:

* fit: the root mean square of r is at most a few times 1, the rounding's own;
* determined: J has full column rank. J has a row for each entry of the gradient, up to millions, so
  it is read through m = 2n random combinations Ω of its rows, each of which is one derivative of
  one scalar. With Gaussian entries of variance 1/m, the singular values of ΩJ are within
  1 ± √(n/m) of J's, up to a deviation that falls off exponentially in m (K. Davidson, S. Szarek,
  2001, theorem II.13); a row space that lacks a direction lacks it in every combination.
* the error: `(JᵀJ)⁻¹` is the covariance of what rounding alone does, times the mean square of r.

What is free and never shows, a scale that an unknown label takes up, say, lacks its direction in J.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vjp, vmap

from attacks.matching.evaluation import Problem
from attacks.types import GradientLeak

FIT = 4.0
"""Root mean square of what is left, in standard deviations, up to which it is rounding."""
COMPUTED = 4.0
"""Roundings of a layer's size that computing its gradient costs."""
OVERSAMPLING = 2
"""Combinations of equations for each unknown."""
SHRUNK = 1 - OVERSAMPLING**-0.5
"""By how much random combinations may shrink a singular value."""
COUNTED = 1024
"""Unknowns up to which equations are counted: that takes derivatives twice as many."""
HARMLESS = 1e-6
"""Share of pixels in directions that leave the gradient as it is, up to which they are none."""
AT_ONCE = 64
"""Combinations at once."""


@dataclass(frozen=True)
class Evidence:
    """What the gradient says of a candidate.

    Args:
        misfit: `‖g − t‖ / ‖t‖`.
        excess: root mean square of what is left, over the rounding's standard deviation.
        error: root mean square error of the pixels that follows; infinite where they aren't
            determined, None where that wasn't looked at.
        reason: why nothing is claimed, as the end of a sentence; None if the fit is exact and
            determined.
    """

    misfit: float
    excess: float
    error: float | None = None
    reason: str | None = None


def evidence_for(
    problem: Problem, row: Tensor, leak: GradientLeak, generator: torch.Generator
) -> Evidence:
    """Return what the gradient says of a row (size,), in float64.

    Args:
        problem: in float64, with all that is unknown free.
        row: where the search ended, its pixels in [0, 1].
        leak: tells the rounding.
        generator: of the combinations.
    """
    deviation = _deviation(problem, leak)
    with torch.no_grad():
        rest = problem.gradient(row) - problem.target
    misfit = float(rest.norm() / problem.target.norm())
    excess = float((rest / deviation).square().mean().sqrt())
    if not excess <= FIT:
        return Evidence(
            misfit, excess, None, "more than rounding leaves, so that nothing vouches for them"
        )
    size, pixels = problem.unknowns.size, problem.unknowns.pixels
    if size > COUNTED:
        end = f"which with {size} unknowns, more than {COUNTED}, isn't examined further"
        return Evidence(misfit, excess, None, end)
    if deviation.numel() < size:
        end = f"and {deviation.numel()} equations don't determine {size} unknowns"
        return Evidence(misfit, excess, torch.inf, end)
    matrix = _combined(problem, row, deviation, generator)
    values, directions = torch.linalg.eigh(matrix.T @ matrix)
    shares = directions[:pixels].square()
    is_lost = values <= size * torch.finfo(values.dtype).eps * values[-1]
    # Logits of a free label may all be shifted, which is no image's matter.
    if float(shares[:, is_lost].sum()) > HARMLESS:
        end = f"and other images leave the same along {int(is_lost.sum())} of {size} directions"
        return Evidence(misfit, excess, torch.inf, end)
    spread = (shares[:, ~is_lost] / values[~is_lost]).sum(dim=1)
    error = float(max(excess, 1.0) / SHRUNK * spread.mean().sqrt())
    return Evidence(misfit, excess, error)


def _deviation(problem: Problem, leak: GradientLeak) -> Tensor:
    """Return the standard deviation (P,) of rounding in what was sent."""
    parts = []
    for name, sent in problem.given.target.items():
        computed = COMPUTED * leak.roundoff(name) * sent.square().mean().sqrt()
        parts.append(leak.rounding(name).square().add(computed**2).sqrt().reshape(-1))
    whole = torch.cat(parts)
    return whole.clamp(min=float(whole.max()) * 1e-12)


def _combined(
    problem: Problem, row: Tensor, deviation: Tensor, generator: torch.Generator
) -> Tensor:
    """Return random combinations (2n, n) of the equations, each over its deviation."""
    count = OVERSAMPLING * problem.unknowns.size

    def rows_of(weights: Tensor, at: Tensor) -> tuple[Tensor]:
        pull = vjp(problem.gradient, at)[1]
        found: tuple[Tensor] = vmap(pull)(weights)
        return found

    combined = []
    for _ in range(0, count, AT_ONCE):
        weights = torch.randn(AT_ONCE, len(deviation), generator=generator, dtype=row.dtype)
        combined.append(rows_of(weights / deviation / count**0.5, row)[0])
    return torch.cat(combined)[:count]
