"""Outpost: pruning and noise by layer, less often as training goes on.

F. Wang, E. Hugh and B. Li, *More than Enough is Too Much: Adaptive Defenses against Gradient
Leakage in Production Federated Learning*, INFOCOM 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.facts import Decaying, Fact
from defenses.base import ClientStep, Defense, Gradients
from defenses.parameters import require_number
from defenses.pruning import prune


def perturbing_probability(server_round: int, beta: float) -> float:
    """Return `1 / (1 + β t)` for the round t = 0, 1, …: how likely a gradient is perturbed.

    Example:
        >>> perturbing_probability(8, 0.125)
        0.5
    """
    return 1 / (1 + beta * server_round)


@dataclass(frozen=True)
class Outpost(Defense):
    """Prune each layer's gradient and add noise to the entries that tell most, in some rounds.

    A layer's noise has the standard deviation `noise · min(Var(w), 1)`, w its weights, and goes to
    entries whose square is among the largest `fisher_share` of all: those of the empirical Fisher
    information.

    Args:
        beta: how fast the probability 1 / (1 + β t) of being perturbed falls over rounds, at least
            0; 0 perturbs always.
        sparsity: share in [0, 1) of each layer's gradient that is set to zero, the smallest.
        noise: standard deviation of the noise per unit of a layer's variance, at least 0.
        fisher_share: share in [0, 1] of all entries that get noise.

    Raises:
        ValueError: a parameter is out of its range.

    Note:
        Differences from the paper's code: the squares are taken entry by entry, not averaged over a
        layer's outputs; and the gradient that leaves is the perturbed one.
    """

    beta: float = 0.125
    sparsity: float = 0.8
    noise: float = 0.8
    fisher_share: float = 0.4

    def __post_init__(self) -> None:
        require_number("beta", self.beta, "of at least 0", lambda beta: beta >= 0)
        require_number("sparsity", self.sparsity, "in [0, 1)", lambda share: 0 <= share < 1)
        require_number("noise", self.noise, "of at least 0", lambda noise: noise >= 0)
        require_number("fisher_share", self.fisher_share, "in [0, 1]", lambda s: 0 <= s <= 1)

    def on_gradient(
        self, step: ClientStep, gradients: Gradients, generator: torch.Generator
    ) -> Gradients:
        """Perturb it, or leave it as it is."""
        probability = perturbing_probability(step.place.round - 1, self.beta)
        if float(torch.rand((), generator=generator)) >= probability:
            return gradients
        assert step.model is not None
        spread = {name: float(p.detach().var(correction=0)) for name, p in _named(step, gradients)}
        scores = {name: part.abs() for name, part in gradients.items()}
        told = torch.cat([part.flatten() for part in scores.values()])
        count = int(self.fisher_share * len(told))
        least = torch.topk(told, count).values[-1] if count else torch.inf
        return {
            name: part + self._noise(part, spread[name], generator) * (scores[name] >= least)
            for name, part in prune(gradients, scores, self.sparsity, "layer").items()
        }

    def _noise(self, part: Tensor, spread: float, generator: torch.Generator) -> Tensor:
        draws = torch.randn(part.shape, generator=generator, dtype=part.dtype)
        return self.noise * min(spread, 1.0) * draws.to(part.device)

    def facts(self) -> tuple[Fact, ...]:
        """Tell how the probability falls."""
        return (Decaying(self.beta),)


def _named(step: ClientStep, gradients: Gradients) -> list[tuple[str, Tensor]]:
    assert step.model is not None
    return [(name, step.model.get_parameter(name)) for name in gradients]
