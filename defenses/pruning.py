"""Pruning: only a part of an update's entries is sent, the others as zeros.

Aji and Heafield, *Sparse Communication for Distributed Gradient Descent*, EMNLP 2017, arXiv
1704.05021; as a defense: Zhu, Liu and Han, *Deep Leakage from Gradients*, NeurIPS 2019, arXiv
1906.08935, section 5.2. Top-k is the magnitude's criterion over the whole update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from attacks.facts import Fact, Pruned
from defenses.base import Defense, Gradients, Place, WithState
from defenses.error_feedback import compress
from defenses.parameters import require_choice, require_number

Criterion = Literal["magnitude", "random"]
Scope = Literal["update", "layer"]


def prune(update: Gradients, scores: Gradients, sparsity: float, scope: Scope) -> dict[str, Tensor]:
    """Set the entries with the lowest scores to zero: `⌊sparsity · n⌋` of n.

    Args:
        update: parameter name -> tensor.
        scores: of the same names and shapes.
        sparsity: share in [0, 1) that becomes zero; 0 changes nothing.
        scope: of which entries a share is taken, the whole "update"'s or each tensor's ("layer").

    Returns:
        Tensors of the same names, shapes and types.

    Example:
        >>> part = {"w": torch.tensor([1.0, -3.0, 2.0, 0.5])}
        >>> prune(part, {"w": part["w"].abs()}, 0.5, "update")["w"].tolist()
        [0.0, -3.0, 2.0, 0.0]
    """
    if scope == "update":
        whole = torch.cat([scores[name].flatten() for name in update])
        kept = torch.split(_kept(whole, sparsity), [part.numel() for part in update.values()])
        masks = dict(zip(update, kept, strict=True))
    else:
        masks = {name: _kept(scores[name].flatten(), sparsity) for name in update}
    return {
        name: torch.where(masks[name].reshape(part.shape), part, torch.zeros_like(part))
        for name, part in update.items()
    }


def _kept(scores: Tensor, sparsity: float) -> Tensor:
    """Return which of the scores (n,) are kept; of equal ones, the first are pruned."""
    kept = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    kept[torch.argsort(scores, stable=True)[: int(sparsity * len(scores))]] = False
    return kept


@dataclass(frozen=True)
class Pruning(Defense):
    """Send a share of the update's entries only.

    Args:
        sparsity: share in [0, 1) that is set to zero; 0 changes nothing.
        criterion: those of the smallest "magnitude" are left out, or "random" ones.
        scope: of which entries the share is taken, the whole "update"'s or each "layer"'s tensor.
        error_feedback: whether what is left out is added to the client's next update.

    Raises:
        ValueError: a parameter is out of its range.
    """

    sparsity: float = 0.8
    criterion: Criterion = "magnitude"
    scope: Scope = "update"
    error_feedback: bool = False

    def __post_init__(self) -> None:
        require_number("sparsity", self.sparsity, "in [0, 1)", lambda share: 0 <= share < 1)
        require_choice("criterion", self.criterion, get_args(Criterion))
        require_choice("scope", self.scope, get_args(Scope))

    @property
    def is_random(self) -> bool:
        """Whether it is drawn which entries are left out."""
        return self.criterion == "random"

    def on_update(
        self, update: Gradients, place: Place, generator: torch.Generator
    ) -> Gradients | WithState:
        """Leave entries out."""

        def compressor(whole: Gradients) -> dict[str, Tensor]:
            if self.criterion == "magnitude":
                scores = {name: part.abs() for name, part in whole.items()}
            else:
                scores = {
                    name: torch.rand(part.shape, generator=generator).to(part.device)
                    for name, part in whole.items()
                }
            return prune(whole, scores, self.sparsity, self.scope)

        return compress(update, place, compressor, error_feedback=self.error_feedback)

    def facts(self) -> tuple[Fact, ...]:
        """Tell that zeros may be entries that were left out."""
        return (Pruned(),)
