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
from attacks.victim.batch_norm import Statistics

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
        has_length: (N,), 1 where a feature's length is known, 0 where its direction alone is.
        statistics: batch norm layer -> mean (C,) and variance (C,) of its input; or None.
    """

    candidate: Candidate
    inputs: Tensors
    centre: Tensor
    features: Tensor | None = None
    has_length: Tensor | None = None
    statistics: Statistics | None = None


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

    The mean over examples. Where x̂ is known up to a positive factor, h(x) is brought to its length.

    Args:
        weight: at least 0.
        layer: the last layer's name.
    """

    weight: float
    layer: str

    def __call__(self, seen: Seen) -> Tensor:
        """Return the penalty."""
        known, has_length = seen.features, seen.has_length
        assert known is not None
        assert has_length is not None
        found = seen.inputs[self.layer].flatten(1)
        sizes, lengths = found.square().sum(dim=1) + TINY, known.square().sum(dim=1) + TINY
        factor = torch.where(has_length > 0, 1, (lengths / sizes).sqrt())
        squares = (factor[:, None] * found - known).square().sum(dim=1)
        return self.weight * (squares / lengths).mean()


@dataclass(frozen=True)
class BatchNormStatistics:
    """`Σ_l ‖μ_l(x) − μ_l‖ + ‖σ²_l(x) − σ²_l‖` over batch norm layers (Yin 2021, equation 5).

    Args:
        weight: at least 0.
    """

    weight: float

    def __call__(self, seen: Seen) -> Tensor:
        """Return the penalty."""
        assert seen.statistics is not None
        terms = []
        for name, (mean, variance) in seen.statistics.items():
            given = seen.inputs[name].transpose(0, 1).flatten(1)
            for found, known in ((given.mean(dim=1), mean), (given.var(dim=1), variance)):
                terms.append(((found - known).square().sum() + TINY).sqrt())
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


@dataclass(frozen=True)
class EpochAgreement:
    """Mean square by which the mean image of each epoch is off the mean of all epochs.

    Epochs hold the same images in other orders, and a mean has none: D. Dimitrov et al., *Data
    leakage in federated averaging*, TMLR 2022, arXiv 2206.12395, section 4.2, with the mean for g
    and squared distances (the differences of all pairs come to the same).

    Args:
        weight: at least 0.
        epochs: E, whose images (E·N, C, H, W) follow one another.
    """

    weight: float
    epochs: int

    def __call__(self, seen: Seen) -> Tensor:
        """Return the penalty."""
        images = seen.candidate.images
        means = images.reshape(self.epochs, -1, *images.shape[1:]).mean(dim=1)
        return self.weight * (means - means.mean(dim=0)).square().mean()


def _minus(gradient: Tensors, target: Tensors) -> dict[str, Tensor]:
    return {name: g - target[name] for name, g in gradient.items()}


def _sum(parts: Tensors) -> Tensor:
    """Return the sum of all squares."""
    return torch.stack([part.square().sum() for part in parts.values()]).sum()
