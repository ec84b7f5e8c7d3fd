"""Entrywise activations, and which of them stands between two layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Activation:
    """An activation `a = σ(z)` whose slope can be read off its output.

    Args:
        name: in words.
        apply: σ.
        inverse: a -> z; infinite at the ends of the range.
        slope: a -> σ'(z).
        bend: a -> the derivative of `slope`; zero where σ is linear on each side of zero.
        low: for a piecewise linear one, the slope below zero (1 above); None for a smooth one.
    """

    name: str
    apply: Function
    inverse: Function
    slope: Function
    bend: Function
    low: float | None = None

    @property
    def is_piecewise(self) -> bool:
        """Whether σ is linear on each side of zero."""
        return self.low is not None

    @property
    def is_invertible(self) -> bool:
        """Whether σ(z) determines z: all but ReLU's."""
        return self.low != 0

    def __call__(self, z: Tensor) -> Tensor:
        """Return σ(z)."""
        return self.apply(z)


def piecewise(low: float) -> Activation:
    """Return ReLU (low 0), leaky ReLU, or the identity (low 1)."""
    return Activation(
        f"max(z, {low:g} z)",
        lambda z: torch.where(z > 0, z, low * z),
        lambda a: torch.where(a > 0, a, a / low),
        lambda a: torch.where(a > 0, 1.0, low).to(a),
        torch.zeros_like,
        low,
    )


def elu(below: float) -> Activation:
    """Return `below · (exp z − 1)` for z below 0, z above."""
    return Activation(
        "ELU",
        lambda z: torch.where(z > 0, z, below * torch.expm1(z.clamp(max=0))),
        lambda a: torch.where(a > 0, a, torch.log1p(a.clamp(max=0) / below)),
        lambda a: torch.where(a > 0, 1.0, a + below),
        lambda a: torch.where(a > 0, 0.0, 1.0).to(a),
    )


RELU, IDENTITY = piecewise(0.0), piecewise(1.0)
SIGMOID = Activation(
    "sigmoid", torch.sigmoid, torch.logit, lambda a: a * (1 - a), lambda a: 1 - 2 * a
)
TANH = Activation("tanh", torch.tanh, torch.atanh, lambda a: (1 - a) * (1 + a), lambda a: -2 * a)
SOFTPLUS = Activation(
    "softplus",
    lambda z: torch.logaddexp(z, torch.zeros_like(z)),
    lambda a: a + torch.log(-torch.expm1(-a)),
    lambda a: -torch.expm1(-a),
    lambda a: torch.exp(-a),
)


def recognise(z: Tensor, a: Tensor) -> Activation | None:
    """Return the activation that maps z to a, up to their shapes; None if none of ours does."""
    if z.numel() != a.numel() or len(z) != len(a):
        return None
    z = z.reshape(a.shape)
    negative = z < 0
    candidates = [RELU, SIGMOID, TANH, SOFTPLUS, IDENTITY]
    if negative.any():
        ratio = float((a[negative] / z[negative]).median())
        candidates.append(elu(float((a[negative] / torch.expm1(z[negative])).median())))
        if 0 < ratio < 1:
            candidates.append(piecewise(ratio))
    return next((c for c in candidates if torch.allclose(c(z), a, rtol=1e-9, atol=1e-12)), None)
