"""Clipping and noise on a client's whole update, together or either alone.

The Gaussian mechanism of Dwork and Roth (*The Algorithmic Foundations of Differential Privacy*,
2014, section 3.5.3), applied by the client itself, as in McMahan et al., *Learning Differentially
Private Recurrent Language Models*, ICLR 2018, arXiv 1710.06963, but before the update is sent.
Laplace noise is that of section 3.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from attacks.facts import Fact, GaussianMechanism, LaplaceMechanism
from defenses.base import Defense, Gradients, Place
from defenses.gradient_clipping import clip
from defenses.parameters import require_choice, require_number
from defenses.privacy import LocalPlan, Privacy

Distribution = Literal["gaussian", "laplace"]


def draw_noise(
    part: Tensor, std: float, distribution: Distribution, generator: torch.Generator
) -> Tensor:
    """Draw noise of a standard deviation, with a tensor's shape, type and device.

    Args:
        part: the tensor.
        std: σ, at least 0; of Laplace noise its scale is σ/√2.
        distribution: "gaussian" or "laplace".
        generator: what is drawn from.
    """
    if distribution == "gaussian":
        return std * torch.randn(part.shape, generator=generator, dtype=part.dtype).to(part)
    # The difference of two exponential draws.
    draws = torch.rand(2, *part.shape, generator=generator, dtype=torch.float64)
    apart = torch.log1p(-draws[0]) - torch.log1p(-draws[1])
    return (std / math.sqrt(2) * apart).to(part)


@dataclass(frozen=True)
class DPNoise(Defense):
    """Clip the weight difference, then add noise to each of its entries.

    Its size is told by `noise_multiplier`, σ = multiplier · norm, or by `noise_std`, σ itself.

    Args:
        clipping_norm: C, the L2 bound on the weight difference, above 0; None clips nothing, and
            then no noise guarantees anything.
        noise_multiplier: σ/C, at least 0; 0 clips only and gives no privacy guarantee.
        noise_std: σ in the units of the weights, at least 0, instead.
        distribution: of the noise, "gaussian" or "laplace". Laplace noise claims no privacy: what
            it guarantees rests on a bound in the L1 norm, and of an update with d entries clipping
            by the L2 norm gives one that is √d times as large.

    Raises:
        ValueError: a parameter is out of its range, or the noise's size is told twice, or not.
    """

    clipping_norm: float | None = None
    noise_multiplier: float | None = None
    noise_std: float | None = None
    distribution: Distribution = "gaussian"

    def __post_init__(self) -> None:
        if self.clipping_norm is not None:
            require_number("clipping_norm", self.clipping_norm, "above 0", lambda c: c > 0)
        for name in ("noise_multiplier", "noise_std"):
            if (value := getattr(self, name)) is not None:
                require_number(name, value, "of at least 0", lambda size: size >= 0)
        require_choice("distribution", self.distribution, get_args(Distribution))
        if (self.noise_multiplier is None) == (self.noise_std is None):
            raise ValueError(
                "the noise's size is told by noise_multiplier or by noise_std, found "
                f"{self.noise_multiplier!r} and {self.noise_std!r}"
            )
        if self.noise_multiplier is not None and self.clipping_norm is None:
            raise ValueError(
                "noise_multiplier is relative to clipping_norm, found none: tell it, or noise_std"
            )

    @property
    def clips(self) -> Literal["update"] | None:
        """The update, if a norm is told."""
        return None if self.clipping_norm is None else "update"

    @property
    def std(self) -> float:
        """σ."""
        if self.noise_multiplier is None or self.clipping_norm is None:
            return float(self.noise_std or 0.0)
        return self.noise_multiplier * self.clipping_norm

    @property
    def is_random(self) -> bool:
        """Whether there is noise."""
        return self.std > 0

    def on_update(self, update: Gradients, place: Place, generator: torch.Generator) -> Gradients:
        """Clip, then add the noise."""
        clipped = update if self.clipping_norm is None else clip(update, self.clipping_norm)
        return {
            name: part + draw_noise(part, self.std, self.distribution, generator)
            for name, part in clipped.items()
        }

    def facts(self) -> tuple[Fact, ...]:
        """Tell the norm and the noise's standard deviation."""
        if self.distribution == "laplace":
            return (LaplaceMechanism(self.clipping_norm, self.std),)
        return (GaussianMechanism(self.clipping_norm, self.std),)

    def facts_of_mean(self, clients: int) -> tuple[Fact, ...]:
        """Tell the noise, σ/√n; of clipping each by its own length nothing is left to tell."""
        if self.clipping_norm is not None or self.distribution == "laplace":
            return ()
        return (GaussianMechanism(None, self.std / math.sqrt(clients)),)

    def privacy(self, plan: LocalPlan) -> Privacy | None:
        """Return that any two updates of norm at most C differ by at most 2C."""
        if self.clipping_norm is None or self.distribution == "laplace":
            return None
        return Privacy(sensitivity=2 * self.clipping_norm, noise=self.std)
