"""CutMix: a rectangle of one image is replaced by another image's, and labels by their areas.

Yun, Han, Oh, Chun, Choe and Yoo, *CutMix: Regularization Strategy to Train Strong Classifiers with
Localizable Features*, ICCV 2019, arXiv 1905.04899, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks import facts as fact
from defenses.base import ClientStep, Defense, replace_batch
from defenses.mixup import draw_shares, mix_halves, numpy_draws
from defenses.parameters import require_number


def paste_rectangles(images: Tensor, share: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Paste rectangles of the second half's images into the first half's.

    A rectangle has the image's proportions and an area of `1 − share`, before the border cuts it.

    Args:
        images: (2B, C, H, W).
        share: (B,), in [0, 1]: what is to be left of the first image.
        center: (B, 2), of the rectangles, in [0, 1), down and right.

    Returns:
        Images (B, C, H, W), and what is really left of the first one, (B,).

    Raises:
        ValueError: there aren't two images for each share.

    Example:
        >>> images = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
        >>> pasted, left = paste_rectangles(images, torch.zeros(1), torch.tensor([[0.5, 0.5]]))
        >>> pasted.unique().tolist(), left.tolist()
        ([1.0], [0.0])
    """
    if len(images) != 2 * len(share):
        raise ValueError(
            f"images must hold two for each of {len(share)} pairs, found {len(images)}"
        )
    first, second = images[: len(share)], images[len(share) :]
    inside = torch.ones(len(share), 1, 1, dtype=torch.bool)
    for axis, size in enumerate(images.shape[-2:]):
        side = size * (1 - share.double()).sqrt()
        middle = (center[:, axis].double() * size).floor()
        low = (middle - (side / 2).floor())[:, None]
        place = torch.arange(size)[None]
        within = (place >= low) & (place < low + side.floor()[:, None])
        inside = inside & (within[:, :, None] if axis == 0 else within[:, None, :])
    left = 1 - inside.double().mean(dim=(1, 2))
    return torch.where(inside[:, None].to(first.device), second, first), left


@dataclass(frozen=True)
class CutMix(Defense):
    """Train on images with a rectangle of another one; areas are drawn from Beta(α, α).

    Args:
        alpha: above 0; towards 0 images stay whole or are replaced, 1 draws areas uniformly.

    Raises:
        ValueError: alpha isn't a finite number above 0.
    """

    alpha: float = 1.0
    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require_number("alpha", self.alpha, "above 0", lambda alpha: alpha > 0)

    def on_batch(self, step: ClientStep, generator: torch.Generator) -> ClientStep:
        """Paste a rectangle of example B+i into example i."""
        draws, pairs = numpy_draws(generator), len(step.images) // 2
        share = draw_shares(pairs, self.alpha, draws)
        center = torch.from_numpy(draws.random((pairs, 2)))
        images, left = paste_rectangles(step.images, share, center)
        return replace_batch(step, images, mix_halves(step.labels, left))

    def facts(self) -> tuple[fact.Fact, ...]:
        """Tell that labels are mixed."""
        return (fact.Mixup(),)
