"""The judge: compares what an attack answered with the truth, which only the simulator holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks import GradientLeak, LabelRecovery
from attacks.network import Network
from attacks.types import Augmentation
from fl_sim.federation import Federation

PSNR_CAP_DB = 200.0
"""PSNR of equal images."""
SSIM_WINDOW = 11
"""Pixels a side that SSIM needs."""
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
    """

    image: Tensor
    top1: int

    @classmethod
    def of(cls, federation: Federation) -> Baseline:
        """Take both from the test data, which the server holds anyway."""
        dataset = federation.dataset
        return cls(
            dataset.test_images.double().mean(dim=0), int(torch.mode(dataset.test_labels).values)
        )


def describe_label(label: Tensor) -> Augmentation:
    """Say how a true label (K,) was augmented."""
    values, _ = label.double().sort(descending=True)
    classes = len(values)
    smoothing = float(values[-1]) * classes if classes > 2 else 0.0
    smooth = smoothing > AUGMENTED * classes
    pair = classes > 2 and float(values[1] - values[-1]) > AUGMENTED
    pair = pair or (classes == 2 and float(values[1]) > AUGMENTED)
    smoothing = smoothing if smooth else 0.0
    if not pair:
        return Augmentation("label-smoothing" if smooth else "hard", smoothing)
    mixing = (float(values[0]) - smoothing / classes) / (1 - smoothing)
    return Augmentation("mixup+label-smoothing" if smooth else "mixup", smoothing, mixing)


def pair_examples(recovery: LabelRecovery, truth: Truth, rows: int) -> list[int]:
    """Return, for each of the recovered rows, the example that it is compared with.

    A batch has no order in a gradient: rows are paired so that the labels' total L1 distance is
    least (Hungarian method). Rows of NaN take what is left, in order.
    """
    if recovery.labels is None or rows == 1:
        return list(range(rows))
    labels = recovery.labels.double().numpy()
    cost = np.abs(labels[:, None] - truth.labels.double().numpy()[None]).sum(axis=2)
    row, column = linear_sum_assignment(np.nan_to_num(cost, nan=2.0 * labels.shape[1]))
    pairs = dict(zip(row.tolist(), column.tolist(), strict=True))
    return [pairs[index] for index in range(len(labels)) if index in pairs]


def score_label(
    recovery: LabelRecovery, row: int, truth: Truth, example: int, leak: GradientLeak
) -> dict[str, Any]:
    """Return the label fields of a record, for one recovered row against one true example."""
    assert recovery.labels is not None
    label = recovery.labels[row].double()
    true_label = truth.labels[example].double()
    true = describe_label(true_label)
    fields: dict[str, Any] = {"true_augmentation": true.type}
    if not label.isfinite().all():
        return fields
    error = (label - true_label).abs()
    fields |= {
        "label_linf": float(error.max()),
        "label_l1": float(error.sum()),
        "label_top1": bool(label.argmax() == true_label.argmax()),
    }
    found = recovery.augmentations[row] if recovery.augmentations else None
    if found is not None:
        fields["smoothing_error"] = abs(found.smoothing - true.smoothing)
        if found.mixing is not None and true.mixing is not None:
            fields["mixing_error"] = abs(found.mixing - true.mixing)
    if recovery.features is not None and recovery.features[row].isfinite().all():
        feature = Network(leak).double_features(truth.images[example : example + 1])[0]
        distance = (recovery.features[row] - feature).norm() / feature.norm()
        fields["feature_error"] = float(distance)
    return fields


def score_image(image: Tensor, true_image: Tensor) -> dict[str, Any]:
    """Return the image fields of a record, for one image (C, H, W) against the true one."""
    if not image.isfinite().all():
        return {}
    fields: dict[str, Any] = {"psnr_db": psnr_db(image, true_image)}
    if min(image.shape[1:]) >= SSIM_WINDOW:
        from torchmetrics.functional.image import structural_similarity_index_measure

        similarity = structural_similarity_index_measure(
            image[None].double(), true_image[None].double(), data_range=1.0
        )
        assert isinstance(similarity, Tensor)
        fields["ssim"] = float(similarity)
    return fields


def psnr_db(image: Tensor, true_image: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB (higher is better), 200 for equal images.

    Args:
        image: (C, H, W), pixels in [0, 1].
        true_image: likewise.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    value = peak_signal_noise_ratio(image.double(), true_image.double(), data_range=1.0)
    return min(float(value), PSNR_CAP_DB)
