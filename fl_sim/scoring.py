"""The judge: compares what an attack answered with the truth, which only the simulator holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    image: Tensor
    top1: int
    mass: Tensor

    @classmethod
    def of(cls, federation: Federation) -> Baseline:
        """Take all from the test data, which the server holds anyway."""
        dataset = federation.dataset
        counts = torch.bincount(dataset.test_labels, minlength=dataset.num_classes).double()
        return cls(
            dataset.test_images.double().mean(dim=0),
            int(torch.mode(dataset.test_labels).values),
            counts / counts.sum(),
        )


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
