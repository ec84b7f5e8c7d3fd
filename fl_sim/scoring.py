"""The judge: compares what an attack answered with the truth, which only the simulator holds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks import GradientLeak, LabelRecovery
from attacks.head_gradient import round_to_sum
from attacks.network import Network
from attacks.types import Augmentation
from fl_sim.federation import Federation

PSNR_CAP_DB = 200.0
"""PSNR of equal images."""
SSIM_WINDOW = 11
"""Pixels a side that SSIM needs."""
LPIPS_SIDE = 32
"""Pixels a side that LPIPS's network needs."""
LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"
"""The file of torchvision's AlexNet, named here because importing torchvision takes seconds."""
LARGEST_SHIFT = 3
"""Pixels by which an image is shifted each way to register it."""
IMAGE_SHARE = 1e-2
"""How much an image's mean square error counts beside a label's L1 error when rows are paired."""
AUGMENTED = 1e-6
"""Smallest ε or share that counts as augmentation: float32 labels are exact to 1e-7."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What a client trained on, after all defenses' `on_batch`; never reaches an attack.

    Args:
        images: (B, C, H, W), pixels in [0, 1].
        labels: (B, K), rows on the simplex.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Baseline:
    """What an attacker guesses who sees no update.

    Args:
        image: (C, H, W), the mean image.
        top1: the most frequent class.
        mass: (K,), the classes' shares, summing to 1.
        class_images: (K, C, H, W), each class's mean image, NaN without one; None if not known.
    """

    image: Tensor
    top1: int
    mass: Tensor
    class_images: Tensor | None = None

    @classmethod
    def of(cls, federation: Federation) -> Baseline:
        """Take all from the test data, which the server holds anyway."""
        dataset = federation.dataset
        images, labels = dataset.test_images.double(), dataset.test_labels
        counts = torch.bincount(labels, minlength=dataset.num_classes).double()
        by_class = [images[labels == k].mean(dim=0) for k in range(dataset.num_classes)]
        return cls(
            images.mean(dim=0),
            int(torch.mode(labels).values),
            counts / counts.sum(),
            torch.stack(by_class),
        )

    def scores(self, true_image: Tensor, label: Tensor) -> dict[str, Any]:
        """Return the PSNR of the mean image and of the mean image of the true class.

        Args:
            true_image: (C, H, W).
            label: (K,), whose largest entry is the class.
        """
        fields = {"baseline_psnr_db": psnr_db(self.image, true_image)}
        if self.class_images is not None:
            guess = self.class_images[int(label.argmax())]
            if guess.isfinite().all():
                fields["baseline_class_psnr_db"] = psnr_db(guess, true_image)
        return fields


def describe_label(label: Tensor) -> Augmentation:
    """Say how a true label (K,) was augmented."""
    return describe_labels(label[None])[0]


def describe_labels(labels: Tensor) -> list[Augmentation]:
    """Say how each of the true labels (B, K) was augmented."""
    classes = labels.shape[1]
    values = np.sort(labels.double().numpy(), axis=1)[:, ::-1]
    largest, second, least = values[:, 0], values[:, 1], values[:, -1]
    if classes == 2:  # a smoothed and a mixed label are the same two numbers
        least = np.zeros_like(least)
    smoothing = np.where(least > AUGMENTED, least * classes, 0.0)
    mixing = (largest - smoothing / classes) / (1 - smoothing).clip(AUGMENTED)
    pairs = second - least > AUGMENTED
    return [
        _named(bool(pair), float(epsilon), float(share))
        for pair, epsilon, share in zip(pairs, smoothing, mixing, strict=True)
    ]


def _named(pair: bool, smoothing: float, mixing: float) -> Augmentation:
    if pair:
        return Augmentation("mixup+label-smoothing" if smoothing else "mixup", smoothing, mixing)
    return Augmentation("label-smoothing" if smoothing else "hard", smoothing)


def pair_examples(
    recovery: LabelRecovery, truth: Truth, rows: int, images: Tensor | None = None
) -> list[int]:
    """Return, for each of the recovered rows, the example that it is compared with.

    A batch has no order in a gradient: rows are paired so that the labels' total L1 distance is
    least (Hungarian method), that of the images where labels are missing or alike. Rows of NaN
    take what is left, in order.

    Args:
        recovery: with labels (R, K) or none.
        truth: (B, ...).
        rows: R.
        images: (R, C, H, W), as recovered; None if there are none.
    """
    if rows == 1 or (recovery.labels is None and images is None):
        return list(range(rows))
    cost = np.zeros((rows, len(truth.labels)))
    if recovery.labels is not None:
        distance = torch.cdist(recovery.labels.double(), truth.labels.double(), p=1)
        cost += distance.nan_to_num(2.0 * truth.labels.shape[1]).numpy()
    if images is not None:
        # Plain differences, not products: those of exact images cancel to nothing.
        true = truth.images.double().flatten(1)
        squares = [(image - true).square().mean(dim=1) for image in images.double().flatten(1)]
        cost += IMAGE_SHARE * torch.stack(squares).nan_to_num(1.0).numpy()
    row, column = linear_sum_assignment(cost)
    pairs = dict(zip(row.tolist(), column.tolist(), strict=True))
    return [pairs[index] for index in range(rows) if index in pairs]


def score_labels(
    recovery: LabelRecovery, truth: Truth, pairs: Sequence[int], leak: GradientLeak
) -> list[dict[str, Any]]:
    """Return the label fields of a record for each recovered row.

    Args:
        recovery: with labels (R, K).
        truth: (B, ...).
        pairs: for each row, the example that it is compared with.
        leak: whose network gives the true features.
    """
    assert recovery.labels is not None
    images, labels = truth.images[list(pairs)], truth.labels[list(pairs)].double()
    error = (recovery.labels.double() - labels).abs().numpy()
    hits = (recovery.labels.argmax(dim=1) == labels.argmax(dim=1)).tolist()
    fields: list[dict[str, Any]] = []
    for row, true in enumerate(describe_labels(labels)):
        scores: dict[str, Any] = {"true_augmentation": true.type}
        if np.isfinite(error[row]).all():
            scores["label_linf"] = float(error[row].max())
            scores["label_l1"] = float(error[row].sum())
            scores["label_top1"] = hits[row]
        found = recovery.augmentations[row] if recovery.augmentations else None
        if found is not None:
            scores["smoothing_error"] = abs(found.smoothing - true.smoothing)
            if found.mixing is not None and true.mixing is not None:
                scores["mixing_error"] = abs(found.mixing - true.mixing)
        fields.append(scores)
    if recovery.features is not None and recovery.features.isfinite().any():
        features = Network(leak).double_features(images)
        distance = (recovery.features - features).norm(dim=1) / features.norm(dim=1)
        for scores, value in zip(fields, distance.tolist(), strict=True):
            if np.isfinite(value):
                scores["feature_error"] = value
    return fields


def score_mass(mass: Tensor, true_mass: Tensor, chance: Tensor) -> dict[str, float]:
    """Return the mass fields of a record: of an attack's answer, and of a guess from N alone.

    `mass_tv` is the total variation distance ½ Σ_k |m̂_k − m_k| / N. `mass_irec` is the share of
    instances recovered, Σ_k min(n̂_k, n_k) / N, with both masses rounded to counts that sum to N by
    largest remainder; it is left out where the attacker doesn't know N and can't round.

    Args:
        mass: (K,), sums to N, or to 1 where the attacker doesn't know N.
        true_mass: (K,), sums to N.
        chance: (K,), what a guesser takes for the classes' shares.
    """
    examples = round(float(true_mass.sum()))
    knows_total = round(float(mass.sum())) == examples
    fields = {}
    for name, found in {"": mass, "_chance": chance}.items():
        fields[f"mass_tv{name}"] = total_variation(found, true_mass)
        if knows_total:
            fields[f"mass_irec{name}"] = instances_recovered(found, true_mass, examples)
    return fields


def total_variation(mass: Tensor, true_mass: Tensor) -> float:
    """Return the distance in [0, 1] of two masses (K,), each scaled to sum to 1."""
    shares = (part.double() / part.double().sum() for part in (mass, true_mass))
    return float((next(shares) - next(shares)).abs().sum() / 2)


def instances_recovered(mass: Tensor, true_mass: Tensor, examples: int) -> float:
    """Return the share of `examples` whose classes two masses (K,), rounded to counts, agree on."""
    counts = [round_to_sum(part.double().numpy(), examples) for part in (mass, true_mass)]
    return float(np.minimum(*counts).sum() / examples)


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
    height, width = (min(LARGEST_SHIFT, (side - 1) // 2) for side in image.shape[1:])
    reach = itertools.product(range(-height, height + 1), range(-width, width + 1))
    moved = torch.stack([image.double().roll(shift, dims=(1, 2)) for shift in reach])
    errors = (moved - true_image.double()).square().mean(dim=(1, 2, 3))
    return psnr_db(moved[errors.argmin()], true_image)


def psnr_db(image: Tensor, true_image: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB (higher is better), 200 for equal images.

    Args:
        image: (C, H, W), pixels in [0, 1].
        true_image: likewise.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    value = peak_signal_noise_ratio(image.double(), true_image.double(), data_range=1.0)
    return min(float(value), PSNR_CAP_DB)
