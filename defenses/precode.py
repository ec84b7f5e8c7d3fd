"""PRECODE: a variational bottleneck in front of the last layer, which draws while clients train.

Scheliga, Mäder and Seeland, *PRECODE – A Generic Model Extension to Prevent Deep Gradient Leakage*,
WACV 2022, arXiv 2108.04725, section 3.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.facts import Bottleneck, Fact
from defenses.base import Defense
from defenses.parameters import require_number, require_whole


class _Penalty(torch.autograd.Function):
    """The identity on μ and log σ², whose backward adds the slope of `β · KL` to the loss's own."""

    generate_vmap_rule = True  # for per-example gradients

    @staticmethod
    def forward(mean: Tensor, log_variance: Tensor, share: float) -> tuple[Tensor, Tensor]:
        return mean.clone(), log_variance.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Any) -> None:
        mean, log_variance, ctx.share = inputs
        ctx.save_for_backward(mean, log_variance)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None]:
        mean, log_variance = ctx.saved_tensors
        of_mean, of_log_variance = mean, (log_variance.exp() - 1) / 2
        return slopes[0] + ctx.share * of_mean, slopes[1] + ctx.share * of_log_variance, None


class VariationalBottleneck(nn.Module):
    """Encode (B, D) into k normal variables, draw them, and decode them to (B, D) again.

    With μ and log σ² of the encoder, `z = μ + σ ⊙ n`, n standard normal; gradients hold those of
    `β · KL(N(μ, σ²) ‖ N(0, 1))` beside the loss's own.

    Args:
        width: D.
        size: k.
        beta: β, the weight of the divergence.
    """

    def __init__(self, width: int, size: int, beta: float) -> None:
        super().__init__()
        self.encoder = nn.Linear(width, 2 * size)
        self.decoder = nn.Linear(size, width)
        self.beta = beta

    def forward(self, features: Tensor) -> Tensor:
        """Draw in train and in eval mode alike: (B, D) -> (B, D)."""
        mean, log_variance = self.encoder(features).chunk(2, dim=1)
        if torch.is_grad_enabled():
            share = self.beta / len(mean)  # the loss is a mean over the batch
            mean, log_variance = _Penalty.apply(mean, log_variance, share)
        drawn = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return torch.as_tensor(self.decoder(drawn))


@dataclass(frozen=True)
class Precode(Defense):
    """Put a variational bottleneck in front of the network's last linear layer.

    Args:
        size: k, variables in the bottleneck, at least 1.
        beta: weight of the Kullback-Leibler divergence in the loss, at least 0.

    Raises:
        ValueError: a parameter is out of its range, or the network has no linear layer.
    """

    size: int = 256
    beta: float = 1e-3

    def __post_init__(self) -> None:
        require_whole("size", self.size, 1)
        require_number("beta", self.beta, "of at least 0", lambda beta: beta >= 0)

    def on_model(self, model: nn.Module, generator: torch.Generator) -> nn.Module:
        """Insert the bottleneck, its weights drawn from the generator."""
        names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
        if not names or not names[-1]:
            raise ValueError(
                "precode needs a linear layer within the network to stand in front of, found none "
                f"in {type(model).__name__}"
            )
        changed = copy.deepcopy(model)
        path, _, name = names[-1].rpartition(".")
        parent, head = changed.get_submodule(path), changed.get_submodule(names[-1])
        assert isinstance(head, nn.Linear)
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            bottleneck = VariationalBottleneck(head.in_features, self.size, self.beta)
        setattr(parent, name, nn.Sequential(bottleneck.to(head.weight), head))
        return changed

    def facts(self) -> tuple[Fact, ...]:
        """Tell that there is a bottleneck, which the network shows anyway, and its loss."""
        return (Bottleneck(self.size, self.beta),)
