"""Batches whose features were recovered: matched example by example, beside all at once.

Behind a network with two dense layers or more, `soft-label` recovers the labels of a batch with
more examples than classes, and the dense layers' inputs follow. So each example's features and its
own gradient of the last layer are known, and are matched alone; joint matching has the batch's sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attacks import GradientLeak, LabelRecovery, Reconstruction
from attacks.images.feature_matching import FeatureMatching
from attacks.images.inverting_gradients import InvertingGradients
from attacks.labels.soft_label import SoftLabelRecovery
from attacks.matching.attack import GradientMatching, Setup
from attacks.matching.objectives import FeatureDistance
from attacks.victim.differentiable import DifferentiableVictim
from fl_sim.bench.image_batch_features import Cell, model_of, recovered_features
from fl_sim.bench.matching import FOUND_NOTE, SMOOTH, difference, psnrs, score_columns, seeded
from fl_sim.bench.victims import dataset, draw_batch
from fl_sim.testing.leaks import gradients_of, leak_of

TITLE = "Batches whose features were recovered: images matched one by one, and all at once"
FEATURE_WEIGHT = 1.0
NOTES = (
    "16 examples of ten classes, smoothed labels, float32 gradients, PyTorch's initial weights. "
    "`convnet+256` is `convnet` with a hidden layer of 256; `lenet5` pools by maxima, so that no "
    "exact attack goes down to pixels. Labels and features are those that `soft-label` and the "
    "dense layers gave.",
    "“joint” looks for all images at once, by `inverting-gradients` (IG) on the gradient of the "
    "batch, or by `feature-matching` with each example's last feature as well. “one by one” is "
    "`feature-matching` of each example alone: the first dense layer's input, and the example's "
    "own gradient of the last layer, which follows from what was recovered. Total variation "
    f"{SMOOTH:g}, weight of the feature {FEATURE_WEIGHT:g}; as many iterations for each image each "
    "way, one start. `difference` is the mean of PSNR minus that of joint IG, paired by example, "
    "with its 95 % interval (Student's t) over the examples of a batch.",
    FOUND_NOTE,
    "Trained: 400 steps of Adam at 1e-3 on batches of 32.",
)
LENET = Cell("lenet5", "mnist-5k", 16)
CELLS = (Cell("convnet+256", "photos", 16), LENET, replace(LENET, steps=400))


@dataclass(frozen=True)
class FirstDenseMatching(FeatureMatching):
    """Match what one layer takes, given as the features, in place of the last layer's input.

    Args:
        layer: its name.
    """

    layer: str = ""

    def setup(
        self, leak: GradientLeak, labels: LabelRecovery, victim: DifferentiableVictim
    ) -> Setup:
        """Move the feature's distance to the layer."""
        base = super().setup(leak, labels, victim)
        smooth, _ = base.priors
        term = FeatureDistance(self.feature_weight, self.layer)
        return replace(base, priors=(smooth, term), watched=(self.layer,))


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch as the server sees it, what it recovers, and the truth.

    Args:
        leak: of the batch.
        recovery: labels (B, K) and last features of each example.
        alone: of each example, in the recovery's order, its gradient of the last layer.
        features: likewise, its label and the first dense layer's input.
        first: the first dense layer's name.
        images: (B, C, H, W), the truth.
    """

    leak: GradientLeak
    recovery: LabelRecovery
    alone: tuple[GradientLeak, ...]
    features: tuple[LabelRecovery, ...]
    first: str
    images: Tensor


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Attack a batch of each cell in three ways, and yield a row for each.

    Args:
        quick: few iterations, of one cell.
        seed: of weights and images.
    """
    budget: dict[str, Any] = {
        "iterations": 10 if quick else iterations(),
        "total_variation": SMOOTH,
        "labels": "given",
    }
    for cell in (LENET,) if quick else CELLS:
        batch = batch_of(cell, seed)
        base: list[float] | None = None
        matching = FeatureMatching(feature_weight=FEATURE_WEIGHT, **budget)
        alone = FirstDenseMatching(feature_weight=FEATURE_WEIGHT, layer=batch.first, **budget)
        for way, attack in (
            ("IG, joint", InvertingGradients(**budget)),
            ("feature-matching, joint", matching),
            ("feature-matching, one by one", alone),
        ):
            found = (one_by_one if attack is alone else _jointly)(attack, batch)
            scores = psnrs([found], [batch.images])
            yield {
                "network": cell.network,
                "source": cell.source,
                "training steps": cell.steps,
                "way": way,
                "images": len(batch.images),
                "iterations": attack.iterations,
                **score_columns([found], [batch.images], cell.source),
                "difference": "" if base is None else difference(scores, base),
            }
            base = scores if base is None else base


def iterations() -> int:
    """Return how many this machine has time for."""
    return 2000 if torch.cuda.is_available() else 100


def batch_of(cell: Cell, seed: int) -> Batch:
    """Draw a batch, and recover its labels and features.

    Raises:
        RuntimeError: they don't all come back, which a table can't be made of.
    """
    data = dataset(cell.source)
    images, labels = draw_batch(
        data, cell.batch, "label-smoothing", classes=cell.classes, seed=seed
    )
    leak = leak_of(model_of(cell, seed), images, labels)
    recovery = SoftLabelRecovery()(leak, generator=seeded(seed))
    features = recovered_features(leak, recovery, seed)
    if features is None or recovery.labels is None or len(features) != len(images):
        raise RuntimeError(f"the features of {cell} weren't recovered: {recovery.reason}")
    first, last = dense_layers(leak.model)
    alone = tuple(
        alone_leak(leak, last, example.feature, example.label)
        for example in recovery.examples
        if example.feature is not None and example.label is not None
    )
    known = tuple(
        LabelRecovery.of([replace(example, feature=feature)])
        for example, feature in zip(recovery.examples, features, strict=True)
    )
    return Batch(leak, recovery, alone, known, first, images)


def dense_layers(model: nn.Module) -> tuple[str, str]:
    """Return the names of a network's first and last dense layers."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    return names[0], names[-1]


def alone_leak(leak: GradientLeak, last: str, feature: Tensor, label: Tensor) -> GradientLeak:
    """Return what a client would have sent of one example, of the last layer alone.

    Args:
        leak: of its batch.
        last: that layer's name.
        feature: (D,), its input.
        label: (K,).
    """
    gradients = gradients_of(leak.model.get_submodule(last), feature[None].float(), label[None])
    named = {f"{last}.{name}": gradient for name, gradient in gradients.items()}
    return GradientLeak(leak.model, named, 1, leak.input_shape)


def _jointly(attack: GradientMatching, batch: Batch) -> Reconstruction:
    return attack(batch.leak, batch.recovery, generator=seeded(0))


def one_by_one(attack: GradientMatching, batch: Batch) -> Reconstruction:
    """Attack each example from what was recovered of it; they run side by side."""
    found = attack.together(
        batch.alone,
        batch.features,
        [seeded(number) for number in range(len(batch.alone))],
    )
    return Reconstruction.of([one.examples[0] for one in found])
