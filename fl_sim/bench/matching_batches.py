"""Batches whose features were recovered: matched example by example, beside all at once.

Behind a network with two dense layers or more, `soft-label` recovers the labels of a batch with
more examples than classes, and the dense layers' inputs follow. That gives each example's own
gradient of the dense layers, which can be matched alone; joint matching has the batch's sum.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

from attacks import GradientLeak, LabelRecovery, Reconstruction
from attacks.images.feature_matching import FeatureMatching
from attacks.images.inverting_gradients import InvertingGradients
from attacks.labels.soft_label import SoftLabelRecovery
from attacks.matching.attack import GradientMatching
from fl_sim.bench.image_batch_features import Cell, model_of, recovered_features
from fl_sim.bench.matching import FOUND_NOTE, difference, psnrs, score_columns, seeded
from fl_sim.bench.victims import dataset, draw_batch
from fl_sim.testing.leaks import gradients_of, leak_of

TITLE = "Batches whose features were recovered: images matched one by one, and all at once"
SMOOTH = 1e-2
"""Weight of total variation, the attacks' default."""
FEATURE_WEIGHT = 1.0
NOTES = (
    "`lenet5`, which pools by maxima, so that no exact attack goes down to pixels; 16 examples of "
    "ten classes, smoothed labels, float32 gradients, PyTorch's initial "
    "weights. Labels and features are those that `soft-label` and the dense layers gave.",
    "“joint” looks for all images at once, by `inverting-gradients` (IG) on the gradient of the "
    "batch, or by `feature-matching` with each example's last feature as well. “one by one” gives "
    "`feature-matching` each example's feature and its own gradient of the dense layers, which "
    f"follows from what was recovered. Total variation {SMOOTH:g}, weight of the feature "
    f"{FEATURE_WEIGHT:g}; as many iterations for each image each way. `difference` is the mean of "
    "PSNR minus that of joint IG, paired by example, with its 95 % interval (Student's t) over the "
    "examples of a batch.",
    FOUND_NOTE,
    "Trained: 400 steps of Adam at 1e-3 on batches of 32.",
)
BASE = Cell("lenet5", "mnist-5k", 16)
CELLS = (BASE, replace(BASE, source="photos"), replace(BASE, steps=400))


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch as the server sees it, what it recovers, and the truth.

    Args:
        leak: of the batch.
        recovery: labels (B, K) and last features of each example.
        alone: of each example, in the recovery's order, its gradient of the dense layers.
        images: (B, C, H, W), the truth.
    """

    leak: GradientLeak
    recovery: LabelRecovery
    alone: tuple[GradientLeak, ...]
    images: Tensor


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Attack a batch of each cell in three ways, and yield a row for each.

    Args:
        quick: few iterations, of one cell.
        seed: of weights and images.
    """
    length = 10 if quick else 300
    joint = InvertingGradients(iterations=length, total_variation=SMOOTH, labels="given")
    matching = FeatureMatching(
        iterations=length,
        total_variation=SMOOTH,
        feature_weight=FEATURE_WEIGHT,
        labels="given",
    )
    for cell in CELLS[:1] if quick else CELLS:
        batch = batch_of(cell, seed)
        base: list[float] | None = None
        for way, attack, is_joint in (
            ("IG, joint", joint, True),
            ("feature-matching, joint", matching, True),
            ("feature-matching, one by one", matching, False),
        ):
            started = time.process_time()
            found = _jointly(attack, batch) if is_joint else one_by_one(attack, batch)
            seconds = time.process_time() - started
            scores = psnrs([found], [batch.images])
            yield {
                "source": cell.source,
                "training steps": cell.steps,
                "way": way,
                "images": len(batch.images),
                "iterations": length,
                **score_columns([found], [batch.images], cell.source),
                "difference": "" if base is None else difference(scores, base),
                "CPU seconds": round(seconds, 1),
            }
            base = scores if base is None else base


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
    alone = tuple(
        alone_leak(leak, feature[None], label[None])
        for feature, label in zip(features, recovery.labels, strict=True)
    )
    return Batch(leak, recovery, alone, images)


def alone_leak(leak: GradientLeak, feature: Tensor, label: Tensor) -> GradientLeak:
    """Return what a client would have sent of one example, of the dense layers alone.

    Args:
        leak: of its batch, of a network in one sequence.
        feature: (1, n), the first dense layer's input.
        label: (1, K).
    """
    model = leak.model
    assert isinstance(model, nn.Sequential)
    first = next(index for index, layer in enumerate(model) if isinstance(layer, nn.Linear))
    # A slice keeps the names of its layers.
    gradients = gradients_of(model[first:], feature.float(), label.float())
    return GradientLeak(model, gradients, 1, leak.input_shape)


def _jointly(attack: GradientMatching, batch: Batch) -> Reconstruction:
    return attack(batch.leak, batch.recovery, generator=seeded(0))


def one_by_one(attack: GradientMatching, batch: Batch) -> Reconstruction:
    """Attack each example from its own gradient; they run side by side."""
    found = attack.together(
        batch.alone,
        [LabelRecovery.of([example]) for example in batch.recovery.examples],
        [seeded(number) for number in range(len(batch.alone))],
    )
    return Reconstruction.of([one.examples[0] for one in found])
