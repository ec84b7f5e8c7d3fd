"""What benchmarks of gradient matching share: victims, known labels, searches, scores."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from attacks import ExampleLabel, GradientLeak, LabelRecovery, Reconstruction, Status
from attacks.matching.attack import GradientMatching
from fl_sim.bench.victims import dataset, draw_batch, untrained
from fl_sim.leakage.image_scores import is_identified
from fl_sim.leakage.judge import psnr_db
from fl_sim.testing.leaks import leak_of

OTHERS = 1000
"""Most photographs among which an image has to find its original."""
SMOOTH = 1e-4
"""Weight of total variation in `inverting-gradients`."""
LEVELS_DB = (20, 30)
"""PSNR from which the literature calls an image recovered: over several steps, and over one."""
FOUND_NOTE = (
    "`found` is the share of images that are nearer to their original than to other photographs, "
    f"up to {OTHERS:,} and those of the same batch; `mean image` is the PSNR of a guess that saw "
    "no gradient."
)


class Victim(NamedTuple):
    """A leak, and the images (B, C, H, W) and labels (B, K) behind it."""

    leak: GradientLeak
    images: Tensor
    labels: Tensor


def drawn(
    network: str, augmentation: str, count: int, seed: int
) -> tuple[nn.Module, Tensor, Tensor]:
    """Return an untrained network of ten classes, and photographs with their labels."""
    data = dataset("photos")
    model = untrained(network, data, classes=10, seed=seed)
    return model, *draw_batch(data, count, augmentation, classes=10, seed=seed)


def victims_of(
    network: str, augmentations: Sequence[str], count: int, seed: int, *, noise: float = 0.0
) -> list[Victim]:
    """Return so many single examples of each augmentation, all of one network.

    Args:
        network: a name in `fl_sim.MODELS`.
        augmentations: of `fl_sim.bench.victims.AUGMENTATIONS`.
        count: of examples each.
        seed: of all draws.
        noise: Gaussian, on each layer's gradient, in units of its root mean square.
    """
    found: list[Victim] = []
    draws = seeded(seed)
    model: nn.Module | None = None
    for augmentation in augmentations:
        own, images, labels = drawn(network, augmentation, count, seed)
        model = own if model is None else model
        for image, label in zip(images[:, None], labels[:, None], strict=True):
            found.append(Victim(_noisy(leak_of(model, image, label), noise, draws), image, label))
    return found


def _noisy(leak: GradientLeak, noise: float, draws: torch.Generator) -> GradientLeak:
    if not noise:
        return leak
    gradients = {
        name: part + noise * part.square().mean().sqrt() * torch.randn(part.shape, generator=draws)
        for name, part in leak.gradients.items()
    }
    return dataclasses.replace(leak, gradients=gradients)


def together(
    attack: GradientMatching, leaks: Sequence[GradientLeak], labels: Sequence[LabelRecovery]
) -> list[Reconstruction]:
    """Attack all clients, those with known labels as one, and the others as another."""
    found: dict[int, Reconstruction] = {}
    for is_known in (True, False):
        chosen = [n for n, one in enumerate(labels) if (one.labels is not None) == is_known]
        if chosen:
            answers = attack.together(
                [leaks[n] for n in chosen],
                [labels[n] for n in chosen],
                [seeded(n) for n in chosen],
            )
            found |= dict(zip(chosen, answers, strict=True))
    return [found[n] for n in range(len(leaks))]


def known(labels: Tensor) -> LabelRecovery:
    """Return true labels (B, K) as if an attack had recovered them."""
    return LabelRecovery.of([ExampleLabel(Status.RECOVERED, label=one.double()) for one in labels])


def unknown() -> LabelRecovery:
    """Return what is known of one example's label without a label attack."""
    return LabelRecovery(Status.NOT_APPLICABLE, "no label attack was asked", batch_size=1)


def seeded(seed: int) -> torch.Generator:
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


@functools.cache
def other_images(name: str = "photos") -> Tensor:
    """Return images (M, C, H, W) that no client trained on."""
    return dataset(name).test_images[:OTHERS]


def mean_psnrs(truths: Sequence[Tensor], source: str = "photos") -> list[float]:
    """Return the PSNR in dB that a guess without any gradient has of each image.

    Args:
        truths: images (B, C, H, W) of each client.
        source: of the images, whose test images' mean is the guess; a name in `fl_sim.DATASETS`.
    """
    mean = dataset(source).test_images.mean(dim=0)
    return [psnr_db(mean, image) for images in truths for image in images]


def misfit(found: Reconstruction) -> float:
    """Return how far the images' gradient is from what was sent, relative to its size."""
    residual = found.examples[0].residual
    return float("inf") if residual is None else residual


def pair_images(found: Reconstruction, images: Tensor) -> Tensor | None:
    """Return what was found in the order of the true images (B, C, H, W) that suits it best."""
    if found.images is None:
        return None
    apart = torch.cdist(images.double().flatten(1), found.images.double().flatten(1)).square()
    _, columns = linear_sum_assignment(apart.nan_to_num(torch.inf).clamp(max=1e6).numpy())
    return found.images[torch.from_numpy(columns)]


def psnrs(found: Sequence[Reconstruction], truths: Sequence[Tensor]) -> list[float]:
    """Return the PSNR of each image in dB; 0, a failure, where there is none."""
    scores: list[float] = []
    for one, images in zip(found, truths, strict=True):
        paired = pair_images(one, images)
        if paired is None:
            scores += [0.0] * len(images)
        else:
            scores += [
                psnr_db(image, truth) if image.isfinite().all() else 0.0
                for image, truth in zip(paired, images, strict=True)
            ]
    return scores


def score_columns(
    found: Sequence[Reconstruction], truths: Sequence[Tensor], source: str = "photos"
) -> dict[str, Any]:
    """Return the columns that say how near images (B, C, H, W) of each client came.

    Args:
        found: of each client.
        truths: likewise.
        source: of the photographs, a name in `fl_sim.DATASETS`.
    """
    scores = psnrs(found, truths)
    named = [
        paired is not None
        and paired[row].isfinite().all()
        and is_identified(paired[row], images, row, other_images(source))
        for one, images in zip(found, truths, strict=True)
        for paired in (pair_images(one, images),)
        for row in range(len(images))
    ]
    return {
        "PSNR median dB": rounded(np.median(scores)),
        "PSNR worst dB": rounded(min(scores)),
        **{f"above {level} dB": share([s > level for s in scores]) for level in LEVELS_DB},
        "found": share([bool(one) for one in named]),
        "mean image dB": rounded(np.median(mean_psnrs(truths, source))),
        "called recovered": sum(s is Status.RECOVERED for one in found for s in one.statuses),
    }


def difference(scores: Sequence[float], base: Sequence[float]) -> str:
    """Return the mean paired difference with its 95 % interval."""
    mean, low, high = interval(scores, base)
    return f"{mean:+.2f}" + (f" ({low:+.2f} to {high:+.2f})" if len(scores) > 1 else "")


def interval_of(shown: str) -> tuple[float, float, float]:
    """Read the mean and the bounds that `difference` shows."""
    mean, *bounds = (float(part) for part in re.findall(r"[-+]\d+\.\d+", shown))
    low, high = bounds or (mean, mean)
    return mean, low, high


def interval(scores: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean paired difference, and the bounds of its 95 % interval (Student's t).

    Of a single pair, the bounds are the difference itself.
    """
    rest = np.array(scores) - np.array(base)
    mean, half = float(rest.mean()), 0.0
    if len(rest) > 1:
        half = float(stats.t.ppf(0.975, len(rest) - 1) * rest.std(ddof=1) / len(rest) ** 0.5)
    return mean, mean - half, mean + half


def share(holds: Sequence[bool]) -> str:
    """Return how many hold, of how many."""
    return f"{sum(holds)} of {len(holds)}"


def rounded(value: Any) -> float:
    """Return a number to one decimal."""
    return round(float(value), 1)
