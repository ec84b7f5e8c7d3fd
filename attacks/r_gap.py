"""The image behind the gradient of a convolutional network, in closed form or by a short fit.

The recovered soft label gives the last layer's feature x and its δ = p − y, with no bias needed
(see `attacks.soft_label`); from there the image follows in one of two ways.

1. **Recursion**, where activations are invertible (sigmoid, tanh). J. Zhu, M. Blaschko, *R-GAP:
   Recursive Gradient Attack on Privacy*, ICLR 2021, arXiv 2010.07733, section 3: a layer's input v
   answers to `W ∗ v = σ⁻¹(a) − b` and `D v = ∂L/∂W`, D the patches of `δ_z = δ_a σ'(a)`.
2. **A fit of the image** where they aren't (ReLU), and for leaky ReLU: Levenberg-Marquardt on the
   last convolution's output and gradient, both continuous in the image.

Linear layers at the top are read off their gradients, `v = (∂L/∂W)ᵀ δ / ‖δ‖²`.

Differences from the paper: labels are soft and of any number of classes; nothing needs a bias; the
equations are weighted by their known rounding; ReLU isn't inverted layer by layer, where too few
equations are left, but by the fit; and each image comes with an error bar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.evidence import Evidence
from attacks.gauss_newton import UNFIT, active_outputs, fit_image
from attacks.layer_rank import NotIdentifiable, image_rank, recursion_ranks, require_rank
from attacks.layer_recursion import Front, descend
from attacks.layers import Chain, read_chain
from attacks.pixel_map import range_of
from attacks.stages import Stage
from attacks.types import (
    GradientLeak,
    ImageAttack,
    LabelRecovery,
    Reconstruction,
    Status,
    require_one_example,
    require_values,
)

CAUTION = 5.0
"""An image is claimed if its estimated error, times this, is below the tolerance."""
BLUR = 1e-2
"""Least error of a pixel for each unit of relative misfit of a layer's gradient."""


@dataclass(frozen=True)
class RGAP(ImageAttack):
    """Invert a chain of convolutions with activations and a linear layer at the end.

    The loss is assumed to be the cross-entropy, which the label recovery stands on.

    Args:
        tolerance: root mean square error in pixels, relative to their range, that RECOVERED stays
            below, above 0; the default is a PSNR of 50 dB.
        iterations: of Levenberg-Marquardt for each start, at least 1.
        starts: random starts of the fit until one explains the leak, at least 1.
        respects_rank: whether an image for which equations are missing is left alone; False tries
            nevertheless, and claims nothing.

    Raises:
        ValueError: a value is out of its range.

    Note:
        A mixed-up example yields the mixed image, which is what the client trained on. `residual`
        is the largest relative misfit of the answer to the feature and to the layers' gradients,
        whether the attack used them or not.
    """

    tolerance: float = 10 ** (-50 / 20)
    iterations: int = 60
    starts: int = 3
    respects_rank: bool = True

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, found {self.tolerance}")
        for name in ("iterations", "starts"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")

    def reconstruct(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        """Read the network, count equations, invert, and vouch for the image or not."""
        require_one_example(leak)
        require_values(leak)
        chain = read_chain(leak)
        evidence = Evidence.of(leak, labels, chain.head)
        try:
            found = self._invert(chain, evidence, generator)
        except NotIdentifiable as verdict:
            return _answer(Status.NOT_IDENTIFIABLE, str(verdict), chain.pixels.slope * torch.nan)
        if not torch.isfinite(found.image).all():
            singular = "the layers' equations are singular in the precision of the leak"
            return _answer(Status.NOT_CONVERGED, singular, chain.pixels.slope * torch.nan)
        for low, high in self._ranges(leak, found.image):
            image = found.image.clamp(low, high)
            residual = consistency(chain, evidence, image)
            status, reason = self._verdict(found, image, labels, residual, high - low)
            answer = _answer(status, reason, image, residual, (low, high))
            if status is Status.RECOVERED:
                break
        return answer

    def _ranges(self, leak: GradientLeak, image: Tensor) -> list[tuple[float, float]]:
        """Return the ranges that an image may have, [0, 1] last."""
        outside = _rms(image - image.clamp(0, 1)) > self.tolerance
        own = [range_of(image)] if outside and leak.normalization is None else []
        return [*own, (0.0, 1.0)]

    def _invert(self, chain: Chain, evidence: Evidence, generator: torch.Generator) -> Estimate:
        """Go down the linear layers, then the way that the network's activations allow.

        Raises:
            NotIdentifiable: equations are missing.
        """
        stages, front = list(chain.body), Front.at_head(evidence, chain)
        while stages and stages[-1].is_linear:
            front = descend(front, [stages.pop()], evidence, generator)
        if takes_fit(chain, stages):
            return self._fit(chain, stages, front, evidence, generator)
        ranks = recursion_ranks(stages)
        if self.respects_rank:
            require_rank(ranks)
        front = descend(front, stages, evidence, generator, counts=self.respects_rank)
        error = front.error * chain.pixels.worth
        if any(rank.deficit for rank in ranks):
            error = torch.inf
        return Estimate(chain.pixels.image(front.value), error, front.saturated)

    def _fit(
        self,
        chain: Chain,
        stages: Sequence[Stage],
        front: Front,
        evidence: Evidence,
        generator: torch.Generator,
    ) -> Estimate:
        active = active_outputs(front, stages[-1])
        live = (front.delta * active).reshape(stages[-1].output_shape).flatten(1).any(dim=1)
        rank = image_rank(chain, stages[-1], outputs=int(active.sum()), rows=int(live.sum()))
        if self.respects_rank:
            require_rank([rank])
        point, error = fit_image(
            chain,
            stages,
            front,
            evidence,
            generator,
            iterations=self.iterations,
            starts=self.starts,
        )
        image = point.image.reshape(chain.pixels.slope.shape)
        if rank.deficit:
            error = torch.inf
        return Estimate(image, error, is_fit=point.misfit <= UNFIT)

    def _verdict(
        self, found: Estimate, image: Tensor, labels: LabelRecovery, residual: float, span: float
    ) -> tuple[Status, str | None]:
        if labels.status is not Status.RECOVERED:
            return (
                Status.NOT_IDENTIFIABLE,
                "the image is as uncertain as the label recovery that it starts from",
            )
        if not found.is_fit:
            return (
                Status.NOT_CONVERGED,
                "the fit ended where the image doesn't explain the gradient",
            )
        outside = _rms(found.image - image)
        error = max(CAUTION * found.error / span, outside, BLUR * residual)
        if not error <= self.tolerance:
            count = found.saturated
            because = f", with {count} activations saturated or lost in noise" if count else ""
            return Status.NOT_CONVERGED, (
                f"the image's error is estimated at {error:.2g}, more than {self.tolerance:.2g}"
                f"{because}"
            )
        return Status.RECOVERED, None


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


def takes_fit(chain: Chain, stages: Sequence[Stage]) -> bool:
    """Say whether the image is to be fitted, rather than the layers inverted one by one.

    It must be where an activation hides its input. Where activations are linear on each side of
    zero it is more exact; there the recursion is left for networks with too few outputs for a fit.
    """
    if not stages:
        return False
    if any(not stage.activation.is_invertible for stage in stages):
        return True
    piecewise = all(stage.activation.is_piecewise for stage in stages)
    return piecewise and not image_rank(chain, stages[-1]).deficit


def consistency(chain: Chain, evidence: Evidence, image: Tensor) -> float:
    """Return the largest relative distance of an image's feature and gradients from the leak's.

    All layers count, whether or not the image was computed from them.
    """
    weights = [stage.weight.clone().requires_grad_() for stage in chain.body]
    a = (chain.pixels.slope * image + chain.pixels.offset)[None]
    for stage, weight in zip(chain.body, weights, strict=True):
        own = replace(stage, weight=weight)
        a = stage.activation(own.preactivation(a))
    loss = chain.head.linear(a).flatten() @ evidence.delta
    gradients = torch.autograd.grad(loss, weights) if weights else ()
    pairs = [(a.detach().flatten(), evidence.feature)]
    pairs += [(g, evidence.gradient(s)) for g, s in zip(gradients, chain.body, strict=True)]
    return max(float((found - given).norm() / given.norm()) for found, given in pairs)


def _answer(
    status: Status,
    reason: str | None,
    image: Tensor,
    residual: float = torch.nan,
    pixel_range: tuple[float, float] = (0.0, 1.0),
) -> Reconstruction:
    return Reconstruction(
        status,
        reason,
        image[None],
        statuses=(status,),
        reasons=(reason,),
        residual=torch.tensor([residual], dtype=torch.float64),
        pixel_range=pixel_range,
    )


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
