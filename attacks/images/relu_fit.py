"""The image behind the gradient of a convolutional ReLU network, by a short fit.

[ours] ReLU hides what goes into it, so layers can't be inverted one by one. But two blocks depend
on the image continuously: the last convolution's output, and its gradient. They are fitted by
Levenberg-Marquardt from a grey image; see `attacks.convolution.image_fit`. Several steps on one
example are repeated, from what this gives for their mean (`attacks.unrolled.one_start`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks.convolution.image_fit import UNFIT, active_outputs, fit_image
from attacks.convolution.inversion import Convolutions, Estimate
from attacks.convolution.rank import image_rank, require_rank
from attacks.convolution.stages import Stage
from attacks.images.convolutional import ConvolutionalInversion
from attacks.types import NotApplicable


@dataclass(frozen=True)
class ReLUFit(ConvolutionalInversion):
    """Fit the image to convolutions with ReLU or leaky ReLU, and linear layers above them.

    The loss is assumed to be the cross-entropy, which the label recovery stands on.

    Further arguments, and what an answer says: those of `ConvolutionalInversion`.

    Args:
        iterations: of Levenberg-Marquardt for each start, at least 1.
        starts: random starts of the fit until one explains the leak, at least 1.

    Raises:
        ValueError: a value is out of its range.
    """

    reach: ClassVar[str] = (
        "one local step of one example or a batch, or several of one, convolutions with ReLU or "
        "leaky ReLU"
    )
    iterations: int = 60
    starts: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("iterations", "starts"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")

    @staticmethod
    def require(stages: Sequence[Stage]) -> None:
        """Raise unless the fit's steps, from one linear piece to the next, lead to the image.

        Raises:
            NotApplicable: there is no convolution, or only smooth activations.
        """
        if not stages:
            raise NotApplicable(
                "the network has no convolution to fit an image through; r-gap and analytic read "
                "it off the linear layers' gradients"
            )
        if not any(stage.activation.is_piecewise for stage in stages):
            raise NotApplicable(
                f"the {stages[-1].activation.name} after layer {stages[-1].name!r} is smooth and "
                "invertible: r-gap takes such networks"
            )

    def invert(self, known: Convolutions, generator: torch.Generator) -> Estimate:
        """Count the equations, and fit."""
        chain, stages, front = known.chain, known.stages, known.front
        self.require(stages)
        active = active_outputs(front, stages[-1])
        live = (front.delta * active).reshape(stages[-1].output_shape).flatten(1).any(dim=1)
        rank = image_rank(chain, stages[-1], outputs=int(active.sum()), rows=int(live.sum()))
        if self.respects_rank:
            require_rank([rank])
        point, error = fit_image(
            chain,
            stages,
            front,
            known.evidence,
            generator,
            iterations=self.iterations,
            starts=self.starts,
        )
        image = point.image.reshape(chain.pixels.slope.shape)
        return Estimate(image, torch.inf if rank.deficit else error, is_fit=point.misfit <= UNFIT)
