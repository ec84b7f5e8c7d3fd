"""Mixes of pairs that both stay in the batch: every original leaves in two of them.

Chapelle, Weston, Bottou and Vapnik, *Vicinal Risk Minimization*, NeurIPS 2000, name the principle;
the mix itself is that of `defenses.mixup`. With the shares m and m' of the first of a pair,

    x̃ = m x₁ + (1−m) x₂,      x̃' = m' x₁ + (1−m') x₂,      labels alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attacks import facts as fact
from defenses.base import ClientStep, Defense, replace_batch
from defenses.mixup import draw_shares, numpy_draws
from defenses.parameters import require_choice, require_number
from defenses.privacy import LocalPlan

Kind = Literal["double-mix", "reverse", "recombine"]


def mix_pairs(batch: Tensor, mixing: Tensor) -> Tensor:
    """Mix neighbours 2i and 2i+1, twice: row 2i+j becomes `m x₂ᵢ + (1−m) x₂ᵢ₊₁` with its own m.

    Args:
        batch: (B, ...), B even.
        mixing: (B,), the shares m in [0, 1] of the first of each pair.

    Returns:
        (B, ...).

    Example:
        >>> mix_pairs(torch.tensor([[0.0], [8.0]]), torch.tensor([0.75, 0.5])).tolist()
        [[2.0], [4.0]]
    """
    first, second = (batch[start::2].repeat_interleave(2, dim=0) for start in (0, 1))
    share = mixing.to(batch).reshape(-1, *[1] * (batch.dim() - 1))
    return share * first + (1 - share) * second


def swap_halves(images: Tensor) -> Tensor:
    """Exchange the right halves of neighbours 2i and 2i+1: (B, C, H, W), B even.

    Example:
        >>> swap_halves(torch.tensor([[0.0, 1.0], [2.0, 3.0]]).reshape(2, 1, 1, 2)).flatten(1)
        tensor([[0., 3.],
                [2., 1.]])
    """
    width = images.shape[-1]
    other = images.reshape(-1, 2, *images.shape[1:]).flip(1).reshape(images.shape)
    is_left = torch.arange(width, device=images.device) < width - width // 2
    return torch.where(is_left, images, other)


def _require_pairs(count: int) -> None:
    if count % 2:
        raise ValueError(f"pairs need an even number of examples in a batch, found {count}")


@dataclass(frozen=True)
class Vicinal(Defense):
    """Train on two mixes of each pair of neighbours in the batch.

    Args:
        kind: "double-mix": m and m' are drawn on their own; "reverse": m' = 1 − m; "recombine":
            the left half of one image beside the right half of the other, labels by the halves.
        alpha: shares are drawn from Beta(α, α), above 0; "recombine" draws nothing.

    Raises:
        ValueError: a parameter is out of its range, or a batch has an odd number of examples.
    """

    kind: Kind = "double-mix"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, get_args(Kind))
        require_number("alpha", self.alpha, "above 0", lambda alpha: alpha > 0)

    @property
    def is_random(self) -> bool:
        """Whether shares are drawn."""
        return self.kind != "recombine"

    def check(self, model: nn.Module, plan: LocalPlan) -> None:
        """Refuse batches, the last one of an epoch among them, with an odd number of examples."""
        last = plan.share_size % plan.batch_size if plan.local_epochs is not None else 0
        _require_pairs(plan.batch_size)
        _require_pairs(last)

    def on_batch(self, step: ClientStep, generator: torch.Generator) -> ClientStep:
        """Mix example 2i with example 2i+1, twice."""
        count, width = len(step.images), step.images.shape[-1]
        _require_pairs(count)
        if self.kind == "recombine":
            left = (width - width // 2) / width
            labels = mix_pairs(step.labels, torch.tensor([left, 1 - left]).repeat(count // 2))
            return replace_batch(step, swap_halves(step.images), labels)
        mixing = draw_shares(count, self.alpha, numpy_draws(generator))
        if self.kind == "reverse":
            mixing[1::2] = 1 - mixing[::2]
        return replace_batch(step, mix_pairs(step.images, mixing), mix_pairs(step.labels, mixing))

    def facts(self) -> tuple[fact.Fact, ...]:
        """Tell that labels are mixed."""
        return (fact.Mixup(),)
