"""What the attacks on convolutional networks share: reading them, and vouching for an image."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.answers import ExampleImage, LabelRecovery, Reconstruction, Status, known
from attacks.convolution.batch import batch_misfit, flattened, front_of
from attacks.convolution.evidence import Evidence
from attacks.convolution.rank import NotIdentifiable
from attacks.convolution.recursion import Front, descend
from attacks.convolution.stages import Chain, Stage, read_chain
from attacks.facts import Fact, NoiseMechanism
from attacks.numerics.rms import rms
from attacks.types import GradientLeak, ImageAttack
from attacks.victim.pixel_map import range_of
from attacks.victim.require import require_one_step, require_values

CAUTION = 5.0
"""An image is claimed if its estimated error, times this, is below the tolerance."""
BLUR = 1e-2
"""Least error of a pixel for each unit of relative misfit of a layer's gradient."""
WORST_TOGETHER = 1e-2
"""Relative misfit of a batch's images to the convolutions' gradients beyond which none is one."""
SINGULAR = "the layers' equations are singular in the precision of the leak"
SHARED = "and in a batch that gradient is the sum over all examples"
NOT_TOGETHER = (
    "the images found miss the convolutions' gradients by {:.1g} together, where they were to "
    "give them"
)


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

    Of a batch, the dense layers give each example's output of the top convolution, and each image
    is found from its own alone (see `attacks.convolution.batch`).

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
        require_one_step(leak)
        require_values(leak)
        chain = read_chain(leak)
        if (leak.batch_size or labels.batch_size or 1) > 1:
            return self._batch(leak, chain, labels, generator)
        evidence = Evidence.of(leak, labels, chain.head)
        stages, front = list(chain.body), Front.at_head(evidence, chain)
        try:
            while stages and stages[-1].is_linear:
                front = descend(front, [stages.pop()], evidence, generator)
            found = self.invert(Convolutions(chain, stages, front, evidence), generator)
        except NotIdentifiable as verdict:
            return Reconstruction.of([ExampleImage(Status.NOT_IDENTIFIABLE, str(verdict))])
        if not torch.isfinite(found.image).all():
            return Reconstruction.of([ExampleImage(Status.NOT_CONVERGED, SINGULAR)])
        for low, high in self._ranges(leak, found.image):
            example = self._example(chain, evidence, found, labels.status, (low, high))
            if example.status is Status.RECOVERED:
                break
        return Reconstruction.of([example], pixel_range=(low, high))

    def _batch(
        self, leak: GradientLeak, chain: Chain, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        """Invert each example from its own output of the top convolution.

        Pixels are in [0, 1] here: an image in its own range is for one example.
        """
        inputs, noise = flattened(leak, chain, labels, generator)
        stages = [stage for stage in chain.body if not stage.is_linear]
        examples = []
        for row, reason in enumerate(inputs.reasons):
            if reason is not None or not inputs.a[row].isfinite().all():
                reason = reason or SINGULAR
                examples.append(ExampleImage(Status.NOT_IDENTIFIABLE, reason))
                continue
            evidence = Evidence.of_one_in_batch(leak, inputs.features[row], chain.head)
            known = Convolutions(chain, stages, front_of(inputs, noise, row, evidence), evidence)
            try:
                found = self.invert(known, generator)
            except NotIdentifiable as verdict:
                examples.append(ExampleImage(Status.NOT_IDENTIFIABLE, f"{verdict}; {SHARED}"))
                continue
            if not torch.isfinite(found.image).all():
                examples.append(ExampleImage(Status.NOT_CONVERGED, SINGULAR))
                continue
            status = labels.examples[row].status
            examples.append(self._example(chain, evidence, found, status, (0.0, 1.0)))
        return Reconstruction.of(_together(leak, chain, labels, examples))

    def _example(
        self,
        chain: Chain,
        evidence: Evidence,
        found: Estimate,
        label: Status,
        ends: tuple[float, float],
    ) -> ExampleImage:
        """Judge an image in a range of pixels."""
        image = found.image.clamp(*ends)
        residual = consistency(chain, evidence, image)
        status, reason, error = self._verdict(found, image, label, residual, ends[1] - ends[0])
        return ExampleImage(status, reason, image, known(residual), error)

    def _ranges(self, leak: GradientLeak, image: Tensor) -> list[tuple[float, float]]:
        """Return the ranges that an image may have, [0, 1] last."""
        outside = rms(image - image.clamp(0, 1)) > self.tolerance
        own = [range_of(image)] if outside and leak.normalization is None else []
        return [*own, (0.0, 1.0)]

    def _verdict(
        self, found: Estimate, image: Tensor, label: Status, residual: float, span: float
    ) -> tuple[Status, str | None, float | None]:
        """Return status, reason and the error, as far as it can be estimated."""
        if label is not Status.RECOVERED:
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

    All layers count, whether or not the image was computed from them, but for gradients of a batch.
    """
    weights = [stage.weight.clone().requires_grad_() for stage in chain.body]
    a = chain.pixels.inputs(image)[None]
    for stage, weight in zip(chain.body, weights, strict=True):
        a = stage.activation(replace(stage, weight=weight).preactivation(a))
    pairs = [(a.detach().flatten(), evidence.feature)]
    if weights and not evidence.is_shared:
        loss = chain.head.linear(a).flatten() @ evidence.delta
        gradients = torch.autograd.grad(loss, weights)
        pairs += [(g, evidence.gradient(s)) for g, s in zip(gradients, chain.body, strict=True)]
    return max(float((found - given).norm() / given.norm()) for found, given in pairs)


def _together(
    leak: GradientLeak,
    chain: Chain,
    labels: LabelRecovery,
    examples: Sequence[ExampleImage],
) -> list[ExampleImage]:
    """Take all claims back where they don't give the convolutions' gradients together."""
    images = [one.image for one in examples if one.status is Status.RECOVERED]
    if len(images) < len(examples) or labels.labels is None:
        return list(examples)
    evidence = Evidence.of_one_in_batch(leak, labels.labels[0], chain.head)
    factor = labels.gradient_scale or 1.0
    found = torch.stack([image for image in images if image is not None])
    misfit = batch_misfit(chain, evidence, found, labels.labels, factor)
    if misfit <= WORST_TOGETHER:
        return list(examples)
    reason = NOT_TOGETHER.format(misfit)
    return [replace(one, status=Status.NOT_CONVERGED, reason=reason) for one in examples]
