"""Optimisers as values: rows of numbers are moved together, each by its own gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Signed = Literal["hard", "soft", "no"]
CURVATURE = 1e-10
"""⟨y, s⟩ from which a pair of steps tells of curvature."""


class Optimiser(Protocol):
    """Moves rows (R, n)."""

    def start(self, rows: Tensor) -> Any:
        """Return the state before the first step."""

    def step(self, rows: Tensor, gradient: Tensor, state: Any, rate: float) -> tuple[Tensor, Any]:
        """Return moved rows, and the next state; nothing given is changed."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Running means of gradients and of their squares, after so many steps."""

    first: Tensor
    second: Tensor
    steps: int = 0


@dataclass(frozen=True)
class Adam:
    """D. Kingma, J. Ba, *Adam*, ICLR 2015, arXiv 1412.6980, algorithm 1.

    Args:
        signed: "hard", on the gradient's sign (Geiping 2020); "soft", on tanh of the gradient
            relative to its mean size; or "no".
    """

    signed: Signed = "hard"

    def start(self, rows: Tensor) -> Moments:
        """Return zero moments."""
        return Moments(torch.zeros_like(rows), torch.zeros_like(rows))

    def step(
        self, rows: Tensor, gradient: Tensor, state: Moments, rate: float
    ) -> tuple[Tensor, Moments]:
        """Step against the mean gradient over the root of the mean square."""
        if self.signed == "hard":
            gradient = gradient.sign()
        elif self.signed == "soft":
            size = gradient.abs().mean(dim=1, keepdim=True)
            gradient = (gradient / size.clamp(min=torch.finfo(size.dtype).tiny)).tanh()
        steps = state.steps + 1
        first = state.first.lerp(gradient, 0.1)
        second = state.second.lerp(gradient.square(), 0.001)
        mean = first / (1 - 0.9**steps)
        root = (second / (1 - 0.999**steps)).sqrt_().add_(1e-8)
        return rows - rate * mean / root, Moments(first, second, steps)


@dataclass(frozen=True, eq=False)
class History:
    """The last steps s and the gradients' changes y, (R, n) each, newest last.

    Args:
        rows: where the last gradient was taken; None before the first step.
        gradient: the last one.
        pairs: (s, y, 1/⟨y, s⟩), the last (R, 1), zero in rows where a pair tells nothing.
        scale: (R, 1), of the initial inverse Hessian.
    """

    rows: Tensor | None = None
    gradient: Tensor | None = None
    pairs: tuple[tuple[Tensor, Tensor, Tensor], ...] = ()
    scale: Tensor | None = None


@dataclass(frozen=True)
class LBFGS:
    """D. Liu, J. Nocedal, *On the limited memory BFGS method*, 1989, algorithm 2.1, no line search.

    Steps have the length `rate`; the first one, along the gradient, is at most as long in L1.

    Args:
        memory: pairs that are kept, at least 1.
    """

    memory: int = 20

    def start(self, rows: Tensor) -> History:
        """Return an empty history."""
        return History()

    def step(
        self, rows: Tensor, gradient: Tensor, state: History, rate: float
    ) -> tuple[Tensor, History]:
        """Step along the quasi-Newton direction."""
        if state.rows is None or state.gradient is None or state.scale is None:
            size = gradient.abs().sum(dim=1, keepdim=True)
            scale = torch.ones_like(size)
            moved = rows - rate * gradient * (1 / size).clamp(max=1)
            return moved, History(rows, gradient, (), scale)
        s, y = rows - state.rows, gradient - state.gradient
        product = (s * y).sum(dim=1, keepdim=True)
        least = torch.finfo(rows.dtype).tiny ** 0.5
        tells = product > (CURVATURE * y.square().sum(dim=1, keepdim=True)).clamp(min=least)
        inverse = torch.where(tells, 1 / product, 0)
        bend = product / y.square().sum(dim=1, keepdim=True)
        scale = torch.where(tells, bend, state.scale)
        pairs = (*state.pairs, (s, y, inverse))[-self.memory :]
        direction = _inverse_hessian(gradient, pairs, scale)
        kept = replace(state, rows=rows, gradient=gradient, pairs=pairs, scale=scale)
        return rows - rate * direction, kept


def _inverse_hessian(
    gradient: Tensor, pairs: tuple[tuple[Tensor, Tensor, Tensor], ...], scale: Tensor
) -> Tensor:
    """Apply the inverse Hessian that the pairs tell of, row by row (two-loop recursion)."""
    q, weights = gradient, []
    for s, y, inverse in reversed(pairs):
        weight = inverse * (s * q).sum(dim=1, keepdim=True)
        q = q - weight * y
        weights.append(weight)
    q = q * scale
    for (s, y, inverse), weight in zip(pairs, reversed(weights), strict=True):
        q = q + (weight - inverse * (y * q).sum(dim=1, keepdim=True)) * s
    return q
