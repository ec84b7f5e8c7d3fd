"""How near a recovered image is to the true one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

PSNR_CAP_DB = 200.0
"""PSNR of equal images."""
SSIM_WINDOW = 11
"""Pixels a side that SSIM needs."""
LPIPS_SIDE = 32
"""Pixels a side that LPIPS's network needs."""
LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"
"""The file of torchvision's AlexNet, named here because importing torchvision takes seconds."""
_PER_NEPER = float(10 / torch.log(torch.tensor(10.0)))
"""Decibels in a unit of the natural logarithm, in the precision of torchmetrics: float32."""
LARGEST_SHIFT = 3
"""Pixels by which an image is shifted each way to register it."""


def score_image(image: Tensor, true_image: Tensor) -> dict[str, Any]:
    """Return the image fields of a record, for one image (C, H, W) against the true one.

    Nothing for an image that wasn't recovered: its line counts as a failure.
    """
    if not image.isfinite().all():
        return {}
    fields: dict[str, Any] = {
        "psnr_db": psnr_db(image, true_image),
        "psnr_registered_db": registered_psnr_db(image, true_image),
    }
    if min(image.shape[1:]) >= SSIM_WINDOW:
        from torchmetrics.functional.image import structural_similarity_index_measure

        similarity = structural_similarity_index_measure(
            image[None].double(), true_image[None].double(), data_range=1.0
        )
        assert isinstance(similarity, Tensor)
        fields["ssim"] = float(similarity)
    fields["lpips_reason"] = lpips_obstacle(image)
    if fields["lpips_reason"] is None:
        fields["lpips"] = lpips(image, true_image)
    return fields


def is_identified(
    image: Tensor, own: Tensor, example: int, others: Tensor | None = None
) -> bool | None:
    """Say whether an image finds its original: whether no other one is as near.

    Image identifiability precision is the share of images that do: H. Yin et al., *See through
    Gradients*, CVPR 2021, arXiv 2104.07586, section 4.2; here by distance in pixels.

    Args:
        image: (C, H, W), as recovered.
        own: (B, C, H, W), what the client trained on.
        example: the original's number in it.
        others: (M, C, H, W), images that it didn't train on; None: none.

    Returns:
        None where there is no other image.
    """
    gallery = own if others is None else torch.cat([own, others.to(own)])
    if len(gallery) < 2:
        return None
    # One at a time in float64, since products of near images would cancel.
    squares = torch.stack([(one.double() - image).square().sum() for one in gallery])
    original = squares[example].clone()
    squares[example] = torch.inf
    return bool(original < squares.min())


def lpips_obstacle(image: Tensor) -> str | None:
    """Say why LPIPS can't be computed for an image (C, H, W); None if it can.

    Its AlexNet's weights don't ship with any package. They are looked for where torch.hub keeps
    them, and never downloaded.
    """
    if min(image.shape[1:]) < LPIPS_SIDE or image.shape[0] not in (1, 3):
        return f"LPIPS needs 1 or 3 channels of at least {LPIPS_SIDE} × {LPIPS_SIDE} pixels"
    if (Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_WEIGHTS).exists():
        return None
    return f"LPIPS needs the weights {LPIPS_WEIGHTS}, which aren't in torch.hub's checkpoints"


def lpips(image: Tensor, true_image: Tensor) -> float:
    """Return the learned perceptual distance (lower is better) by AlexNet, of (C, H, W) images.

    R. Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric",
    CVPR 2018, arXiv 1801.03924. A grey image counts as a colour one.
    """
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    one, other = (part.float().expand(3, -1, -1)[None] for part in (image, true_image))
    return float(learned_perceptual_image_patch_similarity(one, other, "alex", normalize=True))


def registered_psnr_db(image: Tensor, true_image: Tensor) -> float:
    """Return the PSNR after the best shift of up to 3 pixels each way, cyclic, in dB.

    What convolutions recover may be a pixel off, which a viewer wouldn't mind.

    Args:
        image: (C, H, W), pixels in [0, 1].
        true_image: likewise.
    """
    moved = _shifted(image.double())
    errors = (moved - true_image.double()).square_().mean(dim=(1, 2, 3))
    return psnr_db(moved[errors.argmin()], true_image)


def _shifted(image: Tensor) -> Tensor:
    """Return all cyclic shifts (S, C, H, W) of an image (C, H, W), both counted from -3 up."""
    height, width = (min(LARGEST_SHIFT, (side - 1) // 2) for side in image.shape[1:])
    wrapped = pad(image[None], (width, width, height, height), mode="circular")[0]
    # Windows, in a fraction of the time of as many calls of roll; the first one is shifted most.
    windows = wrapped.unfold(1, image.shape[1], 1).unfold(2, image.shape[2], 1)
    # Contiguous, as if stacked: sums over them are in one order.
    return windows.permute(1, 2, 0, 3, 4).flip(0, 1).flatten(0, 1).contiguous()


def psnr_db(image: Tensor, true_image: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB (higher is better), 200 for equal images.

    Args:
        image: (C, H, W), pixels in [0, 1].
        true_image: likewise.
    """
    # As torchmetrics computes it, digit for digit, in a tenth of the time.
    squares = torch.sum(torch.pow(image.double() - true_image.double(), 2))
    error = torch.log(squares / true_image.numel())
    return min(float(0.0 - error) * _PER_NEPER, PSNR_CAP_DB)
