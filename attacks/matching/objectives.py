"""Objectives: how far a candidate's gradient is from the one that was sent, and what images are.

An objective is a distance and any number of priors, each with its weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from attacks.matching.unknowns import Candidate

Tensors = Mapping[str, Tensor]
TINY = 1e-30
"""What keeps the slope of a root finite at zero."""


class Distance(Protocol):
    """A distance of two gradients, by their parameters' names; 0 where they are equal."""

    def __call__(self, gradient: Tensors, target: Tensors) -> Tensor:
        """Return the distance, a scalar."""


@dataclass(frozen=True)
class SquaredDistance:
    """`‖g − t‖² / ‖t‖²`, over all layers together (Zhu 2019, without the denominator)."""

    def __call__(self, gradient: Tensors, target: Tensors) -> Tensor:
        """Return the distance."""
        return _sum(_minus(gradient, target)) / _sum(target)


@dataclass(frozen=True)
class CosineDistance:
    """`1 − ⟨g, t⟩ / (‖g‖ ‖t‖)`, over all layers together (Geiping 2020, equation 4)."""

    def __call__(self, gradient: Tensors, target: Tensors) -> Tensor:
        """Return the distance."""
        dot = torch.stack([(g * target[name]).sum() for name, g in gradient.items()]).sum()
        return 1 - dot / (_sum(gradient) * _sum(target) + TINY).sqrt()


@dataclass(frozen=True)
class LayerwiseDistance:
    """`Σ_l ‖g_l − t_l‖ / ‖t‖` (Yin 2021, equation 3, without the denominator)."""

    def __call__(self, gradient: Tensors, target: Tensors) -> Tensor:
        """Return the distance."""
        squares = [d.square().sum() for d in _minus(gradient, target).values()]
        return (torch.stack(squares) + TINY).sqrt().sum() / _sum(target).sqrt()


@dataclass(frozen=True, eq=False)
class Seen:
    """What a prior may look at.

    Args:
        candidate: images and labels.
        inputs: what watched layers took on the images, by name.
        centre: (N, C, H, W), the mean of all starts' images.
        features: (N, D), of the last layer's input as the label attack recovered it; or None.
    """

    candidate: Candidate
    inputs: Tensors
    centre: Tensor
    features: Tensor | None = None


class Prior(Protocol):
    """What is known of images beforehand, with its weight."""

    def __call__(self, seen: Seen) -> Tensor:
        """Return the weighted penalty, a scalar."""


@dataclass(frozen=True)
class TotalVariation:
    """Mean absolute difference of neighbouring pixels, along rows plus along columns.

    Args:
        weight: at least 0.
        double_opponents: whether differences of colour channels count as channels, too.
    """

    weight: float
    double_opponents: bool = False

    def __call__(self, seen: Seen) -> Tensor:
        """Return the penalty."""
        images = seen.candidate.images
        if self.double_opponents and images.shape[1] == 3:
            images = torch.cat([images, images - images.roll(1, dims=1)], dim=1)
        across = (images[..., 1:] - images[..., :-1]).abs()
        down = (images[..., 1:, :] - images[..., :-1, :]).abs()
        count = max(across.numel(), down.numel(), 1)
        return self.weight * (across.sum() + down.sum()) / count


@dataclass(frozen=True)
class SquaredNorm:
    """Mean square of the pixels' distance from grey.

    Args:
        weight: at least 0.
    """

    weight: float

    def __call__(self, seen: Seen) -> Tensor:
        """Return the penalty."""
        return self.weight * (seen.candidate.images - 0.5).square().mean()


@dataclass(frozen=True)
class FeatureDistance:
    """`‖h(x) − x̂‖² / ‖x̂‖²`: the last layer's input beside the one that was recovered.

    Args:
        weight: at least 0.
        layer: the last layer's name.
    """

    weight: float
    layer: str

    def __call__(self, seen: Seen) -> Tensor:
        """Return the penalty."""
        assert seen.features is not None
        squares = (seen.inputs[self.layer].flatten(1) - seen.features).square().sum()
        return self.weight * squares / (seen.features.square().sum() + TINY)


@dataclass(frozen=True, eq=False)
class BatchNormStatistics:
    """`Σ_l ‖μ_l(x) − μ_l‖ + ‖σ²_l(x) − σ²_l‖` over batch norm layers (Yin 2021, equation 5).

    Args:
        weight: at least 0.
        statistics: each layer's mean and variance, by name.
    """

    weight: float
    statistics: Mapping[str, tuple[Tensor, Tensor]]

    def __call__(self, seen: Seen) -> Tensor:
        """Return the penalty."""
        terms = []
        for name, (mean, variance) in self.statistics.items():
            given = seen.inputs[name].transpose(0, 1).flatten(1)
            for found, known in ((given.mean(dim=1), mean), (given.var(dim=1), variance)):
                terms.append(((found - known.to(found)).square().sum() + TINY).sqrt())
        return self.weight * torch.stack(terms).sum()


@dataclass(frozen=True)
class GroupConsistency:
    """Squared distance from the mean of all starts (Yin 2021, equation 7, unregistered).

    Args:
        weight: at least 0.
    """

    weight: float

    def __call__(self, seen: Seen) -> Tensor:
        """Return the penalty."""
        return self.weight * (seen.candidate.images - seen.centre).square().mean()


def _minus(gradient: Tensors, target: Tensors) -> dict[str, Tensor]:
    return {name: g - target[name] for name, g in gradient.items()}


def _sum(parts: Tensors) -> Tensor:
    """Return the sum of all squares."""
    return torch.stack([part.square().sum() for part in parts.values()]).sum()
