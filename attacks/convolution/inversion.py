"""What the attacks on convolutional networks share: reading them, and vouching for an image."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.answers import ExampleImage, LabelRecovery, Reconstruction, Status, known
from attacks.convolution.evidence import Evidence
from attacks.convolution.rank import NotIdentifiable
from attacks.convolution.recursion import Front, descend
from attacks.convolution.stages import Chain, Stage, read_chain
from attacks.facts import Fact, NoiseMechanism
from attacks.numerics.rms import rms
from attacks.types import GradientLeak, ImageAttack
from attacks.victim.pixel_map import range_of
from attacks.victim.require import require_one_example, require_values

CAUTION = 5.0
"""An image is claimed if its estimated error, times this, is below the tolerance."""
BLUR = 1e-2
"""Least error of a pixel for each unit of relative misfit of a layer's gradient."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """An image before it is judged.

    Args:
        image: (C, H, W), in pixels.
        error: standard deviation of a pixel that rounding leaves, root mean square.
        saturated: how many activations say nothing of what went into them.
        is_fit: whether it explains what it was fitted to; a local minimum doesn't.
    """

    image: Tensor
    error: float
    saturated: int = 0
    is_fit: bool = True


@dataclass(frozen=True, eq=False)
class Convolutions:
    """What is left of a network when its linear layers are read off.

    Args:
        chain: the network.
        stages: its convolutions, the lowest first.
        front: what is known of the last one's output.
        evidence: the gradients.
    """

    chain: Chain
    stages: Sequence[Stage]
    front: Front
    evidence: Evidence


@dataclass(frozen=True)
class ChainInversion(ImageAttack):
    """Invert a chain of convolutions with activations and linear layers at the end.

    The recovered soft label gives the last layer's feature x and its δ = p − y, with no bias needed
    (see `attacks.labels.soft_label`). The linear layers at the top are read off their gradients,
    `v = (∂L/∂W)ᵀ δ / ‖δ‖²`; what follows is the method's own.

    Args:
        tolerance: root mean square error in pixels, relative to their range, that RECOVERED stays
            below, above 0; the default is a PSNR of 50 dB.
        respects_rank: whether an image for which equations are missing is left alone; False tries
            nevertheless, and claims nothing.

    Raises:
        ValueError: tolerance isn't above 0.

    Note:
        A mixed-up example yields the mixed image, which is what the client trained on. `residual`
        is the largest relative misfit of the answer to the feature and to the layers' gradients,
        whether the attack used them or not.
    """

    uses: ClassVar[tuple[type[Fact], ...]] = (NoiseMechanism,)
    tolerance: float = 10 ** (-50 / 20)
    respects_rank: bool = True

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, found {self.tolerance}")

    @abc.abstractmethod
    def invert(self, known: Convolutions, generator: torch.Generator) -> Estimate:
        """Find the image behind the convolutions.

        Raises:
            NotApplicable: their activations aren't this method's.
            NotIdentifiable: equations are missing.
        """

    def reconstruct(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        """Read the network, count equations, invert, and vouch for the image or not."""
        require_one_example(leak)
        require_values(leak)
        chain = read_chain(leak)
        evidence = Evidence.of(leak, labels, chain.head)
        stages, front = list(chain.body), Front.at_head(evidence, chain)
        try:
            while stages and stages[-1].is_linear:
                front = descend(front, [stages.pop()], evidence, generator)
            found = self.invert(Convolutions(chain, stages, front, evidence), generator)
        except NotIdentifiable as verdict:
            return Reconstruction.of([ExampleImage(Status.NOT_IDENTIFIABLE, str(verdict))])
        if not torch.isfinite(found.image).all():
            singular = "the layers' equations are singular in the precision of the leak"
            return Reconstruction.of([ExampleImage(Status.NOT_CONVERGED, singular)])
        for low, high in self._ranges(leak, found.image):
            image = found.image.clamp(low, high)
            residual = consistency(chain, evidence, image)
            status, reason, error = self._verdict(found, image, labels, residual, high - low)
            example = ExampleImage(status, reason, image, known(residual), error)
            answer = Reconstruction.of([example], pixel_range=(low, high))
            if status is Status.RECOVERED:
                break
        return answer

    def _ranges(self, leak: GradientLeak, image: Tensor) -> list[tuple[float, float]]:
        """Return the ranges that an image may have, [0, 1] last."""
        outside = rms(image - image.clamp(0, 1)) > self.tolerance
        own = [range_of(image)] if outside and leak.normalization is None else []
        return [*own, (0.0, 1.0)]

    def _verdict(
        self, found: Estimate, image: Tensor, labels: LabelRecovery, residual: float, span: float
    ) -> tuple[Status, str | None, float | None]:
        """Return status, reason and the error, as far as it can be estimated."""
        if labels.status is not Status.RECOVERED:
            return (
                Status.NOT_IDENTIFIABLE,
                "the image is as uncertain as the label recovery that it starts from",
                None,
            )
        if not found.is_fit:
            return (
                Status.NOT_CONVERGED,
                "the fit ended where the image doesn't explain the gradient",
                None,
            )
        outside = rms(found.image - image)
        error = max(CAUTION * found.error / span, outside, BLUR * residual)
        if not error <= self.tolerance:
            count = found.saturated
            because = f", with {count} activations saturated or lost in noise" if count else ""
            estimate = f"estimated at {error:.2g}, more than {self.tolerance:.2g}{because}"
            return Status.NOT_CONVERGED, f"the image's error is {estimate}", known(error)
        return Status.RECOVERED, None, error


def consistency(chain: Chain, evidence: Evidence, image: Tensor) -> float:
    """Return the largest relative distance of an image's feature and gradients from the leak's.

    All layers count, whether or not the image was computed from them.
    """
    weights = [stage.weight.clone().requires_grad_() for stage in chain.body]
    a = chain.pixels.inputs(image)[None]
    for stage, weight in zip(chain.body, weights, strict=True):
        a = stage.activation(replace(stage, weight=weight).preactivation(a))
    loss = chain.head.linear(a).flatten() @ evidence.delta
    gradients = torch.autograd.grad(loss, weights) if weights else ()
    pairs = [(a.detach().flatten(), evidence.feature)]
    pairs += [(g, evidence.gradient(s)) for g, s in zip(gradients, chain.body, strict=True)]
    return max(float((found - given).norm() / given.norm()) for found, given in pairs)
