"""A small vision transformer."""

from __future__ import annotations

from typing import Any

from torch import nn

from fl_sim.errors import UserError
from fl_sim.models.layers import Normalize, Shape

PATCHES = 8
"""Along each side, at least."""


def vit_tiny(
    *,
    num_classes: int,
    input_shape: Shape,
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> nn.Module:
    """Return timm's ViT-Tiny with random weights: 12 blocks of width 192 with 3 heads.

    A. Dosovitskiy et al., *An Image is Worth 16x16 Words*, ICLR 2021, arXiv 2010.11929; its size is
    that of H. Touvron et al., *DeiT*, ICML 2021, arXiv 2012.12877, table 1. A side has 8 patches or
    a few more: 4×4 pixels each of 32×32.

    In a scenario: `name = "fl_sim.models.vit:vit_tiny"`.

    Args:
        num_classes: K.
        input_shape: (C, H, W), H = W, a multiple of 8.
        bias: whether the last layer has one; the others do.
        mean: of each channel.
        std: of each channel.

    Raises:
        UserError: timm isn't installed; the extra `vit` brings it.
        ValueError: images have another shape.
    """
    channels, height, width = input_shape
    if height != width or height % PATCHES:
        raise ValueError(
            f"images must be square, with sides that are multiples of {PATCHES} pixels, "
            f"found {height}×{width}"
        )
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise UserError(
            "vit_tiny needs timm, which isn't installed: pip install 'fl-sim[vit]'"
        ) from error
    network: Any = VisionTransformer(
        img_size=height,
        patch_size=height // PATCHES,
        in_chans=channels,
        num_classes=num_classes,
        embed_dim=192,
        depth=12,
        num_heads=3,
    )
    network.head = nn.Linear(network.embed_dim, num_classes, bias=bias)
    return nn.Sequential(Normalize(mean, std), network)
