"""The judge: compares what an attack answered with the truth, which only the simulator holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks import LabelRecovery
from attacks.answers import Augmentation
from attacks.counts.head_gradient import round_to_sum
from fl_sim.leakage.image_scores import psnr_db
from fl_sim.leakage.true_features import TrueFeatures

__all__ = [
    "Baseline",
    "Judge",
    "Truth",
    "describe_label",
    "describe_labels",
    "instances_recovered",
    "pair_examples",
    "psnr_db",
    "score_labels",
    "score_mass",
    "total_variation",
]

IMAGE_SHARE = 1e-2
"""How much an image's mean square error counts beside a label's L1 error when rows are paired."""
OTHERS = 1000
"""Images among which, beside a client's own, a recovered one has to find its original."""
AUGMENTED = 1e-6
"""Smallest ε or share that counts as augmentation: float32 labels are exact to 1e-7."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What a client trained on in a round, after all defenses' `on_batch`; never reaches an attack.

    An example that several steps took is there once.

    Args:
        images: (B, C, H, W), pixels in [0, 1].
        labels: (B, K), rows on the simplex; of an example with several labels, the first.
        all_labels: for each example, all its different labels (N, K) in the round, where a defense
            drew them anew; None: each has one.
        originals: for each example, the images (N, C, H, W) that it was mixed from; None where
            nothing is mixed.

    Raises:
        ValueError: all_labels or originals aren't those of B examples.
    """

    images: Tensor
    labels: Tensor
    all_labels: Sequence[Tensor] | None = None
    originals: Sequence[Tensor] | None = None

    def __post_init__(self) -> None:
        for name, what, several, single in (
            ("originals", "images (N, C, H, W)", self.originals, self.images),
            ("all_labels", "labels (N, K)", self.all_labels, self.labels),
        ):
            if several is None:
                continue
            shapes, like = [tuple(part.shape) for part in several], tuple(single.shape[1:])
            if len(shapes) != len(single) or any(s[1:] != like or s[0] < 1 for s in shapes):
                noun = what.split()[0]
                raise ValueError(
                    f"{name} must hold {what} for each of {len(single)} examples with {noun} of "
                    f"shape {like}, found shapes {shapes}"
                )

    @classmethod
    def joined(cls, truths: Sequence[Truth]) -> Truth:
        """Return the truth of several clients together, in their order; that of one as it is."""
        if len(truths) == 1:
            return truths[0]
        several, mixed = (
            any(getattr(truth, name) is not None for truth in truths)
            for name in ("all_labels", "originals")
        )
        originals = [
            rows
            for t in truths
            for rows in (t.images[:, None] if t.originals is None else t.originals)
        ]
        labels = [t.labels_of(i) for t in truths for i in range(len(t.labels))]
        return cls(
            torch.cat([truth.images for truth in truths]),
            torch.cat([truth.labels for truth in truths]),
            tuple(labels) if several else None,
            tuple(originals) if mixed else None,
        )

    def labels_of(self, example: int) -> Tensor:
        """Return all different labels (N, K) of an example."""
        if self.all_labels is None:
            return self.labels[example : example + 1]
        return self.all_labels[example]

    def label_near(self, example: int, found: Tensor | None) -> Tensor:
        """Return, of an example's labels (K,), the one nearest to a recovered one in L1."""
        labels = self.labels_of(example)
        if found is None or len(labels) == 1:
            return labels[0]
        return labels[int((labels.double() - found.double()).abs().sum(dim=1).argmin())]


@dataclass(frozen=True, eq=False)
class Baseline:
    """What an attacker guesses who sees no update.

    Args:
        image: (C, H, W), the mean image.
        top1: the most frequent class.
        mass: (K,), the classes' shares, summing to 1.
        class_images: (K, C, H, W), each class's mean image, NaN without one; None if not known.
        others: (M, C, H, W), images that no client trained on, M up to 1,000; None without any.
    """

    image: Tensor
    top1: int
    mass: Tensor
    class_images: Tensor | None = None
    others: Tensor | None = None

    @classmethod
    def of(cls, images: Tensor, labels: Tensor, *, classes: int) -> Baseline:
        """Take all from data that the server holds anyway.

        Args:
            images: (M, C, H, W), pixels in [0, 1].
            labels: (M,), in 0..K-1.
            classes: K.
        """
        images = images.double()
        counts = torch.bincount(labels, minlength=classes).double()
        by_class = [images[labels == k].mean(dim=0) for k in range(classes)]
        return cls(
            images.mean(dim=0),
            int(torch.mode(labels).values),
            counts / counts.sum(),
            torch.stack(by_class),
            images[:OTHERS],
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


class Judge(Protocol):
    """Who holds the truth: the simulator, or who rehearses an app with data of their own.

    A deployment has none. A client is named as in the records.
    """

    @property
    def baseline(self) -> Baseline:
        """What an attacker guesses who sees no update."""

    def truth(self, client: int, server_round: int) -> Truth:
        """Return what the client trained on in the round, each example once."""

    def label_mass(self, client: int, server_round: int) -> Tensor:
        """Return the sum (K,) of the labels that the client trained on in all the round's steps."""


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
) -> list[int | None]:
    """Return, for each of the recovered rows, the example that it is compared with.

    A batch has no order in a gradient: rows are paired so that the labels' total L1 distance is
    least (Hungarian method), that of the images where labels are missing or alike. Rows of NaN
    take what is left, in order. Rows beyond the number of examples are compared with none: those
    that fit worst. Examples beyond the number of rows are left out.

    Args:
        recovery: with labels (R, K) or none.
        truth: (B, ...).
        rows: R.
        images: (R, C, H, W), as recovered; None if there are none.

    Example:
        >>> from attacks import ExampleLabel, Status
        >>> labels = torch.eye(3).double()[[2, 0]]
        >>> found = [ExampleLabel(Status.RECOVERED, label=label) for label in labels]
        >>> recovery = LabelRecovery.of(found)
        >>> pair_examples(recovery, Truth(torch.rand(3, 1, 4, 4), torch.eye(3)), 2)
        [2, 0]
    """
    examples = len(truth.labels)
    if rows == examples == 1 or (recovery.labels is None and images is None):
        return [row if row < examples else None for row in range(rows)]
    cost = np.zeros((rows, examples))
    if recovery.labels is not None:
        found = recovery.labels.double()
        for example in range(examples):
            own = truth.labels_of(example).double()
            distance = torch.cdist(found, own, p=1).amin(dim=1)
            cost[:, example] += distance.nan_to_num(2.0 * truth.labels.shape[1]).numpy()
    if images is not None:
        # Plain differences, not products: those of exact images cancel to nothing.
        true = truth.images.double().flatten(1)
        squares = [(image - true).square().mean(dim=1) for image in images.double().flatten(1)]
        cost += IMAGE_SHARE * torch.stack(squares).nan_to_num(1.0).numpy()
    row, column = linear_sum_assignment(cost)
    pairs = dict(zip(row.tolist(), column.tolist(), strict=True))
    return [pairs.get(index) for index in range(rows)]


def score_labels(
    recovery: LabelRecovery,
    truth: Truth,
    pairs: Sequence[int | None],
    true_features: TrueFeatures,
) -> list[dict[str, Any]]:
    """Return the label fields of a record for each recovered row.

    A row is compared with the nearest of its example's labels; `true_labels` counts them.

    Args:
        recovery: with R examples.
        truth: (B, ...).
        pairs: for each row, the example that it is compared with; None for none.
        true_features: of the network that was attacked.

    Returns:
        Fields for each row; none for a row that is compared with none.
    """
    fields: list[dict[str, Any]] = [{} for _ in pairs]
    compared = [(row, example) for row, example in enumerate(pairs) if example is not None]
    if not compared:
        return fields
    labels = torch.stack(
        [truth.label_near(example, recovery.examples[row].label) for row, example in compared]
    ).double()
    for (row, example), label, true in zip(compared, labels, describe_labels(labels), strict=True):
        found, scores = recovery.examples[row], fields[row]
        scores["true_augmentation"] = true.type
        scores["true_labels"] = len(truth.labels_of(example))
        if found.label is not None:
            error = (found.label - label).abs()
            scores["label_linf"] = float(error.max())
            scores["label_l1"] = float(error.sum())
            scores["label_top1"] = int(found.label.argmax()) == int(label.argmax())
        if found.augmentation is not None:
            scores["smoothing_error"] = abs(found.augmentation.smoothing - true.smoothing)
            if found.augmentation.mixing is not None and true.mixing is not None:
                scores["mixing_error"] = abs(found.augmentation.mixing - true.mixing)
    featured = [pair for pair in compared if recovery.examples[pair[0]].feature is not None]
    if featured:
        features = true_features(truth.images[[example for _, example in featured]])
        for (row, _), feature in zip(featured, features, strict=True):
            distance = (recovery.examples[row].feature - feature).norm() / feature.norm()
            if distance.isfinite():
                fields[row]["feature_error"] = float(distance)
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
