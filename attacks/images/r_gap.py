"""The image behind the gradient of a convolutional network, layer by layer in closed form.

J. Zhu, M. Blaschko, *R-GAP: Recursive Gradient Attack on Privacy*, ICLR 2021, arXiv 2010.07733,
section 3: where activations are invertible, a layer's input v answers to two linear constraints,

    W ∗ v = σ⁻¹(a) − b,      D v = ∂L/∂W,      D the patches of δ_z = δ_a σ'(a).

Differences from the paper: labels are soft and of any number of classes; nothing needs a bias; the
equations are weighted by their known rounding, their rank is counted before they are solved, and
each image comes with an error bar. Several steps on one example are repeated, from what this gives
for their mean (`attacks.unrolled.one_start`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks.convolution.inversion import Convolutions, Estimate
from attacks.convolution.rank import recursion_ranks, require_rank
from attacks.convolution.recursion import descend
from attacks.convolution.stages import Stage
from attacks.images.convolutional import ConvolutionalInversion
from attacks.types import NotApplicable


@dataclass(frozen=True)
class RGAP(ConvolutionalInversion):
    """Invert convolutions with invertible activations, and linear layers above them.

    The loss is assumed to be the cross-entropy, which the label recovery stands on.

    Arguments, errors and what an answer says: those of `ConvolutionalInversion`.

    Note:
        Of ReLU, too few equations are left: see `relu-fit`, which for leaky ReLU is the more exact
        too, where there are outputs enough.
    """

    reach: ClassVar[str] = (
        "one local step of one example or a batch, or several of one, convolutions with "
        "invertible activations"
    )

    @staticmethod
    def require(stages: Sequence[Stage]) -> None:
        """Raise unless what comes out of an activation says what went in.

        Raises:
            NotApplicable: it is a ReLU's.
        """
        hidden = next((stage for stage in stages if not stage.activation.is_invertible), None)
        if hidden is not None:
            raise NotApplicable(
                f"the ReLU after layer {hidden.name!r} hides what goes into it, and the recursion "
                "needs it; relu-fit takes such networks"
            )

    def invert(self, known: Convolutions, generator: torch.Generator) -> Estimate:
        """Go down the convolutions."""
        stages, pixels = known.stages, known.chain.pixels
        self.require(stages)
        ranks = recursion_ranks(stages, is_shared=known.evidence.is_shared)
        if self.respects_rank:
            require_rank(ranks)
        counts = self.respects_rank
        front = descend(known.front, stages, known.evidence, generator, counts=counts)
        error = front.error * pixels.worth
        if any(rank.deficit for rank in ranks):
            error = torch.inf
        return Estimate(pixels.pixels(front.value)[0], error, front.saturated)
