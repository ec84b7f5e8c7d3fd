"""Layer by layer from the last feature to the image: recursion on gradients.

J. Zhu, M. Blaschko, *R-GAP: Recursive Gradient Attack on Privacy*, ICLR 2021, arXiv 2010.07733,
section 3. A layer's input v answers to two linear constraints, `W ∗ v = z` with `z = σ⁻¹(a)` from
the layer above, and `D v = ∂L/∂W` with D the patches of `δ_z = δ_a σ'(a)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.convolution.evidence import Evidence
from attacks.convolution.rank import LayerRank, require_rank
from attacks.convolution.stages import Chain, Stage
from attacks.convolution.system import LayerSystem, by_channel
from attacks.numerics.rms import rms
from attacks.types import NotApplicable

SURE = 3.0
"""Entries closer to the end of σ's range than this many standard deviations say nothing of z."""


@dataclass(frozen=True, eq=False)
class Front:
    """How far the recursion has come: what is known of the output of the lowest stage done.

    Args:
        value: a = σ(z), flat.
        std: its standard deviations, flat.
        noise: the part of them that would make an entry of a zero, flat.
        delta: ∂L/∂a, flat.
        delta_std: its standard deviations, flat.
        scale_bar: relative error bar that value and 1/δ have in common.
        misfit: root mean square of the weighted residuals so far, the largest of all layers; 1 is
            what the standard deviations explain.
        saturated: how many outputs of the layers so far say nothing of their inputs.
    """

    value: Tensor
    std: Tensor
    noise: Tensor
    delta: Tensor
    delta_std: Tensor
    scale_bar: float
    misfit: float = 0.0
    saturated: int = 0

    @classmethod
    def at_head(cls, evidence: Evidence, chain: Chain) -> Front:
        """Start below the last layer."""
        x, noise = evidence.feature, evidence.feature_noise
        # The client computed the feature itself in finite precision.
        own = evidence.eps * rms(x[x != 0])
        delta = chain.head.adjoint(evidence.delta).flatten()
        delta_std = torch.full_like(delta, evidence.eps * rms(delta))
        std = noise.hypot(torch.tensor(own))
        return cls(x, std, noise, delta, delta_std, evidence.scale_bar)

    @property
    def error(self) -> float:
        """Standard deviation of the value's entries, root mean square, if the misfit is noise."""
        return max(rms(self.std), self.scale_bar * rms(self.value))


def descend(
    front: Front,
    stages: Sequence[Stage],
    evidence: Evidence,
    generator: torch.Generator,
    *,
    counts: bool = True,
) -> Front:
    """Invert stages, the highest first.

    Args:
        front: where to start.
        stages: the layers below it, the lowest first.
        evidence: their gradients.
        generator: draws the noise that measures errors.
        counts: whether to stop where equations are missing.

    Raises:
        NotIdentifiable: too many entries of a layer are saturated.
    """
    for stage in reversed(stages):
        front = (
            _through_linear(front, stage, evidence)
            if stage.is_linear
            else _through(front, stage, evidence, generator, counts)
        )
    return front


def known_outputs(front: Front, stage: Stage) -> Tensor:
    """Say which outputs of a stage determine what went into its activation, (O·H'·W',) bool."""
    slope = stage.activation.slope(front.value)
    z = stage.activation.inverse(front.value)
    return torch.isfinite(z) & (slope > SURE * front.std * (not stage.activation.is_piecewise))


def _through(
    front: Front, stage: Stage, evidence: Evidence, generator: torch.Generator, counts: bool
) -> Front:
    known = known_outputs(front, stage)
    slope = stage.activation.slope(front.value).clamp(min=0)
    delta = (front.delta * slope).reshape(stage.output_shape)
    if counts:
        require_rank([LayerRank.of(stage, outputs=int(known.sum()), rows=_live(delta))])
    gradient, noise = evidence.gradient(stage), gradient_noise(front, stage, evidence)
    system = LayerSystem(
        stage,
        patches=stage.patches(delta),
        output_weight=torch.where(known, slope / front.std, 0.0),
        gradient_weight=1 / by_channel(noise),
    )
    z = stage.activation.inverse(front.value).reshape(stage.output_shape)
    target = system.target(z if stage.bias is None else z - stage.bias[:, None, None], gradient)
    scaled = system.target((front.value / slope).reshape(stage.output_shape), gradient)
    (v, moved), error = system.solve(torch.cat([target, scaled]), generator)
    misfit = rms(system.product(v[None]) - target)
    bar = bounded_scale(front.scale_bar, misfit, system.product(moved[None]) - scaled)
    error = (error * max(misfit, 1.0)).hypot(torch.tensor(bar * rms(moved)))
    # What isn't determined at all is off by its own size.
    error = error.clamp(max=max(rms(v), 1.0))
    return replace(
        front,
        value=v,
        std=error,
        noise=error,
        delta=stage.adjoint(delta).flatten(),
        delta_std=_delta_std_below(front, stage),
        scale_bar=0.0,
        misfit=max(misfit, front.misfit),
        saturated=front.saturated + int((~known).sum()),
    )


def gradient_noise(front: Front, stage: Stage, evidence: Evidence) -> Tensor:
    """Return the standard deviations of `∂L/∂W − D v`, (O, C, kh, kw): D is uncertain too."""
    patches = _delta_std(front, stage).reshape(stage.output_shape).flatten(1).norm(dim=1)
    own = evidence.gradient_std(stage)
    return own.hypot(stage.input_size * patches[:, None, None, None])


def _delta_std(front: Front, stage: Stage) -> Tensor:
    """Return the standard deviations of δ_z = δ_a σ'(a), flat: of δ_a, and of a by σ''."""
    slope, bend = stage.activation.slope(front.value), stage.activation.bend(front.value)
    return (front.delta_std * slope).hypot(front.delta * bend * front.std)


def _delta_std_below(front: Front, stage: Stage) -> Tensor:
    variance = stage.adjoint(_delta_std(front, stage).square(), stage.weight.square())
    return variance.flatten().sqrt()


def bounded_scale(bar: float, misfit: float, unexplained: Tensor) -> float:
    """Return how far a common scale may be off.

    A value that is too large by a factor, with a δ that is too small by it, moves the right-hand
    sides along themselves. As much of that as no input explains would be seen in the residuals.

    Args:
        bar: relative, known beforehand.
        misfit: root mean square of the residuals.
        unexplained: what is left of the right-hand sides' derivative by the logarithm of the scale.
    """
    seen = max(misfit, 1.0) / max(rms(unexplained), torch.finfo(torch.float64).tiny)
    return min(bar, seen)


def _through_linear(front: Front, stage: Stage, evidence: Evidence) -> Front:
    """Read the input off the gradient alone: `∂L/∂W = δ vᵀ`, so `v = (∂L/∂W)ᵀ δ / ‖δ‖²`."""
    delta = front.delta * stage.activation.slope(front.value)
    square = float(delta @ delta)
    if square == 0:
        raise NotApplicable(f"the gradient vanishes on its way down to layer {stage.name!r}")
    gradient, std = (
        part[:, :, 0, 0] for part in (evidence.gradient(stage), evidence.gradient_std(stage))
    )
    v = delta @ gradient / square
    misfit = rms((gradient - torch.outer(delta, v)) / std)
    noise = max(misfit, 1.0) * (delta.square() @ std.square()).sqrt() / square
    relative = float(_delta_std(front, stage).norm()) / math.sqrt(square)
    return replace(
        front,
        value=v,
        std=noise.hypot(torch.tensor(relative * rms(v))),
        noise=noise,
        delta=stage.adjoint(delta).flatten(),
        delta_std=_delta_std_below(front, stage),
        misfit=max(misfit, front.misfit),
    )


def _live(delta: Tensor) -> int:
    """Count the output channels whose gradient says something."""
    return int(delta.flatten(1).any(dim=1).sum())
