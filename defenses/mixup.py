"""Mixup (Zhang et al., *mixup: Beyond Empirical Risk Minimization*, ICLR 2018, arXiv 1710.09412)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from defenses.base import ClientStep, Defense, replace_batch


def mix_halves(batch: Tensor, mixing: Tensor) -> Tensor:
    """Mix row i of a batch with row B+i: `m·x_i + (1−m)·x_{B+i}`.

    Args:
        batch: (2B, ...).
        mixing: (B,), the shares m in [0, 1]; 1 leaves the first half, 0 the second.

    Returns:
        (B, ...).

    Example:
        >>> mix_halves(torch.tensor([[0.0], [8.0]]), torch.tensor([0.75])).tolist()
        [[2.0]]
    """
    first, second = batch.chunk(2)
    share = mixing.to(batch).reshape(-1, *[1] * (batch.dim() - 1))
    return share * first + (1 - share) * second


@dataclass(frozen=True)
class Mixup(Defense):
    """Train on mixed pairs, images and labels alike; the shares are drawn from Beta(α, α).

    Args:
        alpha: above 0; towards 0 pairs stay unmixed, 1 draws shares uniformly, large values halve.

    Raises:
        ValueError: alpha isn't above 0.
    """

    alpha: float = 1.0
    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, found {self.alpha}")

    def on_batch(self, step: ClientStep, generator: torch.Generator) -> ClientStep:
        """Mix example i with example B+i."""
        seed = int(torch.randint(2**62, (), generator=generator))
        pairs = len(step.images) // 2
        mixing = torch.from_numpy(np.random.default_rng(seed).beta(self.alpha, self.alpha, pairs))
        return replace_batch(step, mix_halves(step.images, mixing), mix_halves(step.labels, mixing))
