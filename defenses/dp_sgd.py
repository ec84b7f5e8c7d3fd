"""DP-SGD: each example's gradient is clipped, their sum gets noise, and who is in it is drawn.

Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar and Zhang, *Deep Learning with Differential
Privacy*, CCS 2016, arXiv 1607.00133, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from attacks.facts import ClippedExamples, Fact
from defenses.base import ClientStep, Defense, Gradients
from defenses.parameters import require_number
from defenses.privacy import LocalPlan, Privacy


def clip_examples(gradients: Gradients, clipping_norm: float) -> dict[str, Tensor]:
    """Scale each example's gradient down to an L2 norm: `g_b · min(1, C/‖g_b‖)`.

    Args:
        gradients: parameter name -> (B, *shape).
        clipping_norm: C, above 0; over all of an example's tensors together.

    Returns:
        Of the same names, shapes and types.

    Example:
        >>> clip_examples({"w": torch.tensor([[3.0, 4.0], [0.3, 0.4]])}, 1.0)["w"].norm(dim=1)
        tensor([1.0000, 0.5000])
    """
    squares = [part.double().flatten(1).square().sum(dim=1) for part in gradients.values()]
    norms = torch.stack(squares).sum(dim=0).sqrt()
    factors = (clipping_norm / norms.clamp(min=1e-300)).clamp(max=1)
    return {
        name: part * factors.to(part).reshape(-1, *[1] * (part.dim() - 1))
        for name, part in gradients.items()
    }


@dataclass(frozen=True)
class DPSGD(Defense):
    """Clip each example's gradient to C, add noise of σ = multiplier · C to their sum, divide by B.

    Every example is drawn on its own at the rate `client.batch_size` / share (Poisson sampling), so
    that a step's batch varies and may be empty; B is `client.batch_size`, what a step takes on
    average.

    Args:
        clipping_norm: C, the L2 bound on an example's gradient, above 0.
        noise_multiplier: σ/C, at least 0; 0 clips only and gives no privacy guarantee.

    Raises:
        ValueError: a parameter is out of its range; or clients train in epochs, which take every
            example; or by a network whose examples don't have gradients of their own.
    """

    clipping_norm: float
    noise_multiplier: float
    is_poisson: ClassVar[bool] = True
    starts_from_examples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number("clipping_norm", self.clipping_norm, "above 0", lambda c: c > 0)
        require_number("noise_multiplier", self.noise_multiplier, "of at least 0", lambda z: z >= 0)

    @property
    def clips(self) -> Literal["examples"]:
        """Each example's gradient."""
        return "examples"

    def check(self, model: nn.Module, plan: LocalPlan) -> None:
        """Refuse epochs, and batch norm in train mode."""
        if plan.local_epochs is not None:
            raise ValueError(
                "dp-sgd draws every example on its own in each step: set client.local_steps, found "
                f"local_epochs = {plan.local_epochs}"
            )
        norm = nn.modules.batchnorm._BatchNorm
        names = [name for name, part in model.named_modules() if isinstance(part, norm)]
        if names and plan.mode == "train":
            raise ValueError(
                "dp-sgd needs a gradient of each example's own, which batch norm in train mode "
                f'doesn\'t have: set client.mode = "eval" or take another network, found {names[0]}'
            )

    def on_gradient(
        self, step: ClientStep, gradients: Gradients, generator: torch.Generator
    ) -> Gradients:
        """Clip, add up, add the noise, and divide."""
        assert step.per_example_gradients is not None
        clipped = clip_examples(step.per_example_gradients(), self.clipping_norm)
        std = self.noise_multiplier * self.clipping_norm
        return {
            name: (
                clipped[name].sum(dim=0)
                + std * torch.randn(part.shape, generator=generator, dtype=part.dtype).to(part)
            )
            / (step.expected_examples or len(step.images))
            for name, part in gradients.items()
        }

    def facts(self) -> tuple[Fact, ...]:
        """Tell the norm and the noise."""
        return (ClippedExamples(self.clipping_norm, self.noise_multiplier),)

    def facts_of_mean(self, clients: int) -> tuple[Fact, ...]:
        """Tell those of one sum over all examples, whose noise is √n times as large."""
        return (ClippedExamples(self.clipping_norm, self.noise_multiplier * math.sqrt(clients)),)

    def privacy(self, plan: LocalPlan) -> Privacy:
        """Return that an example, there or not, changes the sum of a step by at most C."""
        return Privacy(
            sensitivity=self.clipping_norm,
            noise=self.noise_multiplier * self.clipping_norm,
            sampling=min(1.0, plan.batch_size / plan.share_size),
            unit="example",
            releases=plan.local_steps,
        )
