"""Mixup: convex combinations of two examples.

Zhang, Cissé, Dauphin and Lopez-Paz, *mixup: Beyond Empirical Risk Minimization*, ICLR 2018, arXiv
1710.09412, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from attacks import facts as fact
from defenses.base import ClientStep, Defense, replace_batch
from defenses.parameters import require_number


def mix_halves(batch: Tensor, mixing: Tensor) -> Tensor:
    """Mix row i of a batch with row B+i: `m·x_i + (1−m)·x_{B+i}`.

    Args:
        batch: (2B, ...).
        mixing: (B,), the shares m in [0, 1]; 1 leaves the first half, 0 the second.

    Returns:
        (B, ...).

    Raises:
        ValueError: the batch doesn't hold two rows for each share.

    Example:
        >>> mix_halves(torch.tensor([[0.0], [8.0]]), torch.tensor([0.75])).tolist()
        [[2.0]]
    """
    if len(batch) != 2 * len(mixing):
        raise ValueError(
            f"batch must hold two rows for each of {len(mixing)} pairs, found {len(batch)}"
        )
    first, second = batch[: len(mixing)], batch[len(mixing) :]
    share = mixing.to(batch).reshape(-1, *[1] * (batch.dim() - 1))
    return share * first + (1 - share) * second


def numpy_draws(generator: torch.Generator) -> np.random.Generator:
    """Return a generator of NumPy's, which has the Beta distribution, seeded by one draw."""
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))


def draw_shares(count: int, alpha: float, draws: np.random.Generator) -> Tensor:
    """Draw shares (count,) from Beta(α, α), in float64."""
    return torch.from_numpy(draws.beta(alpha, alpha, count))


@dataclass(frozen=True)
class Mixup(Defense):
    """Train on mixed pairs, images and labels alike; the shares are drawn from Beta(α, α).

    Args:
        alpha: above 0; towards 0 pairs stay unmixed, 1 draws shares uniformly, large values halve.

    Raises:
        ValueError: alpha isn't a finite number above 0.
    """

    alpha: float = 1.0
    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require_number("alpha", self.alpha, "above 0", lambda alpha: alpha > 0)

    def on_batch(self, step: ClientStep, generator: torch.Generator) -> ClientStep:
        """Mix example i with example B+i."""
        pairs = len(step.images) // 2
        mixing = draw_shares(pairs, self.alpha, numpy_draws(generator))
        return replace_batch(step, mix_halves(step.images, mixing), mix_halves(step.labels, mixing))

    def facts(self) -> tuple[fact.Fact, ...]:
        """Tell that pairs are mixed."""
        return (fact.Mixup(),)
