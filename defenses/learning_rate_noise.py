"""A learning rate that the server doesn't know: every step's is drawn.

The gradient of a step is multiplied by a factor, which for plain SGD is a learning rate of its own.
It hides the size of the gradient alone, and attacks that need no size see through it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attacks.facts import Fact, ScaledGradient
from defenses.base import ClientStep, Defense, Gradients
from defenses.parameters import require_number


@dataclass(frozen=True)
class LearningRateNoise(Defense):
    """Multiply each step's gradient by a factor drawn log-uniformly from [low, high].

    Args:
        low: the smallest factor, above 0.
        high: the largest, at least low; equal to it, the factor is fixed, and 1 and 1 change
            nothing.

    Raises:
        ValueError: a factor isn't a finite number above 0, or they are out of order.
    """

    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        require_number("low", self.low, "above 0", lambda low: low > 0)
        require_number("high", self.high, f"of at least low, {self.low}", lambda h: h >= self.low)

    @property
    def is_random(self) -> bool:
        """Whether the factor is drawn."""
        return self.low < self.high

    def on_gradient(
        self, step: ClientStep, gradients: Gradients, generator: torch.Generator
    ) -> Gradients:
        """Multiply it."""
        draw = float(torch.rand((), generator=generator, dtype=torch.float64))
        factor = self.low * (self.high / self.low) ** draw
        return {name: part * factor for name, part in gradients.items()}

    def facts(self) -> tuple[Fact, ...]:
        """Tell that there is a factor."""
        return (ScaledGradient(),)
