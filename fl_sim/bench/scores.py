"""Labels and images of a batch, beside the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from attacks import LabelRecovery, Reconstruction, Status
from fl_sim.leakage.judge import Truth, pair_examples, psnr_db

TOLERANCE, STRICT, CLAIM_DB = 1e-2, 1e-3, 50.0
"""L∞ error from which a claimed label is false, and below which it counts as exact; PSNR below
which a claimed image is false."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What came of one batch.

    Args:
        found: examples whose label is called RECOVERED.
        strict: examples whose label is off by less than 1e-3.
        false: claims that aren't so, of labels and images.
        images: (B, C, H, W), in the order of the truth, NaN without an image.
        label_error: (B,), L∞, infinite without a label.
        psnr: (B,), in dB, minus infinity without an image.
        psnr_bar: (B,), the PSNR down to which the attack's own error bar goes; minus infinity
            without one.
    """

    found: int
    strict: int
    false: int
    images: Tensor
    label_error: Tensor
    psnr: Tensor
    psnr_bar: Tensor


def score_batch(
    recovery: LabelRecovery, found: Reconstruction, images: Tensor, labels: Tensor
) -> Scores:
    """Pair what was recovered with the truth, images (B, C, H, W) and labels (B, K)."""
    count = len(images)
    pairs = pair_examples(recovery, Truth(images, labels), count, found.images)
    error, psnr, bar = torch.full((3, count), torch.inf).double()
    psnr, bar, shown = -psnr, -bar, torch.full_like(images.double(), torch.nan)
    claims = false = 0
    for row, example in enumerate(pairs):
        if example is None or row >= len(recovery.examples):
            continue
        answer = recovery.examples[row]
        claims += answer.status is Status.RECOVERED
        if answer.label is not None:
            error[example] = (answer.label - labels[example]).abs().max()
        false += answer.status is Status.RECOVERED and bool(error[example] >= TOLERANCE)
        image = found.examples[row] if found.examples else None
        if image is not None and image.image is not None:
            shown[example] = image.image
            psnr[example] = psnr_db(image.image, images[example])
            if image.error is not None:
                bar[example] = -20 * math.log10(max(image.error, 1e-10))
            false += image.status is Status.RECOVERED and bool(psnr[example] < CLAIM_DB)
    return Scores(claims, int((error < STRICT).sum()), false, shown, error, psnr, bar)


def shown_median(values: Tensor) -> float:
    """Return the median by the nearest rank, as some may be infinite."""
    return float(values.sort().values[max(math.ceil(0.5 * len(values)) - 1, 0)])


def shown_changes(cell: Any, base: Any) -> str:
    """Name the fields, and their values, in which a dataclass differs from another of its kind."""
    changed = [
        f"{field.name} {_shown(getattr(cell, field.name))}"
        for field in fields(cell)
        if getattr(cell, field.name) != getattr(base, field.name)
    ]
    return ", ".join(changed) or "base"


def _shown(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
