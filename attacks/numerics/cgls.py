"""Linear least squares by conjugate gradients, for operators that are known by their products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


def cgls(
    product: Product,
    adjoint: Product,
    target: Tensor,
    *,
    scale: Tensor,
    damping: float = 0.0,
    tolerance: float = 1e-10,
    steps: int = 1000,
) -> Tensor:
    """Minimise `‖A u − b‖² + damping ‖u / scale‖²` for several right-hand sides at once.

    Conjugate gradients on the normal equations (CGLS; Å. Björck, *Numerical Methods for Least
    Squares Problems*, SIAM 1996, section 7.4), in the variable u / scale.

    Args:
        product: A on rows (N, n), giving (N, m).
        adjoint: Aᵀ on rows (N, m), giving (N, n).
        target: b, (N, m).
        scale: (n,), the size of each unknown, such as the inverse of its column's norm.
        damping: at least 0.
        tolerance: each row stops when ‖Aᵀ r‖ has fallen by this factor.
        steps: the most there are.

    Returns:
        u (N, n).
    """
    rest = target
    gradient = scale * adjoint(rest)
    solution = torch.zeros_like(gradient)
    direction = gradient
    square = gradient.square().sum(dim=1, keepdim=True)
    enough = tolerance**2 * square
    for _ in range(steps):
        if (square <= enough).all():
            break
        image = product(scale * direction)
        curvature = image.square().sum(dim=1, keepdim=True)
        curvature = curvature + damping * direction.square().sum(dim=1, keepdim=True)
        step = torch.where(square > enough, square / curvature, 0.0)
        solution = solution + step * direction
        rest = rest - step * image
        gradient = scale * adjoint(rest) - damping * solution
        before, square = square, gradient.square().sum(dim=1, keepdim=True)
        direction = gradient + torch.where(before > 0, square / before, 0.0) * direction
    return scale * solution
