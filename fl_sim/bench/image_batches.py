"""`analytic` on batches: how close its images come, what it claims, and what it costs.

Victims are fully connected networks. The labels come from `soft-label`, or are given with the
errors that an attack leaves (1e-6 in a gradient, 1e-3 in a weight update), which shows the image
attack by itself.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS, ExampleLabel, GradientLeak, LabelRecovery, Status
from attacks.victim.network import Network
from fl_sim.bench.training import trained
from fl_sim.bench.victims import INITS, draw_batch, inits, linear_chain, untrained
from fl_sim.data import Dataset, build_dataset
from fl_sim.leakage.judge import Truth, pair_examples, psnr_db
from fl_sim.testing.leaks import SentAs, leak_of

TITLE = "Images of whole batches from fully connected networks by `analytic`"
NOTES = (
    "PSNR in dB; an image that wasn't found counts as minus infinity, and is never left out. "
    "Published for one image at 64×64 and smoothing 0.27: 51.2 dB in 4.2 s (arXiv 2402.03124).",
    INITS,
)

CLASSES = 100
SOURCES = ("photos", "mnist-5k")
KINDS: tuple[SentAs, ...] = ("float32", "update")
CLAIM_DB = 50.0
"""PSNR that RECOVERED claims."""
GIVEN_ERRORS: Mapping[str, float] = {"float32": 1e-6, "update": 1e-3}
"""Relative errors of labels and features that are given."""


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Args:
        source: "photos", "photos-64" or "mnist-5k".
        batch: B.
        sent_as: "float32" (a gradient) or "update" (weights after a step at 0.1).
        network: "wide-fcn", or a name in `fl_sim.MODELS`.
        bias: whether its layers have biases.
        init: "default" or "he", how the weights are drawn.
        is_trained: from there to an accuracy of at least 0.9, or not at all.
        augmentation: of the labels.
        labels: "soft-label" or "given".
    """

    source: str
    batch: int
    sent_as: SentAs
    network: str = "wide-fcn"
    bias: bool = False
    init: str = "default"
    is_trained: bool = False
    augmentation: str = "label-smoothing"
    labels: str = "soft-label"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of one batch, row by row.

    Args:
        images: (B, C, H, W) as recovered, NaN where there is none.
        truth: (B, C, H, W), each row's own.
        psnr: (B,), in dB; minus infinity without an image.
        claimed: (B,), whether it is called RECOVERED.
        mean_image: (B,), PSNR of the test data's mean image.
        label_error: L∞ error of the labels that the images were found from; infinite without.
        label_seconds: of the label attack.
        seconds: of the image attack.
    """

    images: Tensor
    truth: Tensor
    psnr: Tensor
    claimed: Tensor
    mean_image: Tensor
    label_error: float
    label_seconds: float
    seconds: float


def settings(*, quick: bool) -> Iterator[Setting]:
    """Yield what is measured: a dozen settings when quick, otherwise about a hundred.

    He's initial weights come with all else; of PyTorch's, what takes masks takes its time.
    """
    for sent_as, init in itertools.product(KINDS, inits("fcn4")):
        yield Setting("photos-64", 1, sent_as, "fcn4", init=init)
    if quick:
        yield from (Setting("photos", 8, sent_as, bias=True) for sent_as in KINDS)
        for source, labels in itertools.product(SOURCES, ("soft-label", "given")):
            yield Setting(source, 8, "update", init="he", labels=labels)
        return
    for source, bias, batch in itertools.product(SOURCES, (False, True), (8, 16, 32, 64)):
        if batch < 64 or source == "photos":
            yield Setting(source, batch, "update", bias=bias)
        for sent_as in KINDS:
            yield Setting(source, batch, sent_as, bias=bias, init="he")
    for bias in (False, True):
        yield Setting("photos", 16, "float32", bias=bias)
    for source, sent_as, batch in itertools.product(SOURCES, KINDS, (8, 16, 32, 64)):
        yield Setting(source, batch, sent_as, init="he", labels="given")
    for sent_as, batch in itertools.product(KINDS, (8, 16, 32)):
        yield Setting("photos", batch, sent_as, augmentation="mixup", init="he")
        for labels in ("soft-label", "given"):
            yield Setting("mnist-5k", batch, sent_as, "mlp", is_trained=True, labels=labels)
    for batch in (8, 16, 32):
        yield Setting("photos", batch, "update", bias=True, augmentation="mixup")
        yield Setting("mnist-5k", batch, "update", "mlp", init="he", is_trained=True)


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Yield a row for each setting, over five seeds of images and weights (fewer of large ones)."""
    for setting in settings(quick=quick):
        count = 2 if quick else 5 if setting.batch < 64 else 3
        yield _row(setting, [attack_batch(setting, seed + i) for i in range(count)])


def attack_batch(setting: Setting, seed: int) -> Outcome:
    """Build a victim, attack it, and score the answer."""
    data = _data(setting.source)
    classes = None if setting.is_trained else CLASSES
    model = _model(setting, data, seed)
    images, labels = draw_batch(
        data, setting.batch, setting.augmentation, classes=classes, seed=seed
    )
    leak = leak_of(model, images, labels, sent_as=setting.sent_as)
    generator = torch.Generator().manual_seed(seed)
    truth = Truth(images, labels)
    started = time.perf_counter()
    if setting.labels == "given":
        recovery = given_labels(leak, truth, GIVEN_ERRORS[setting.sent_as], generator)
    else:
        recovery = LABEL_ATTACKS.build(setting.labels)(leak, generator=generator)
    labelled = time.perf_counter()
    found = IMAGE_ATTACKS.build("analytic")(leak, recovery, generator=generator)
    seconds = time.perf_counter() - labelled
    recovered = found.images
    if recovered is None:
        recovered = torch.full(images.shape, torch.nan, dtype=torch.float64)
    pairs = pair_examples(recovery, truth, setting.batch, recovered)
    true = images[pairs]
    mean = data.test_images.double().mean(dim=0)
    scores = [psnr_db(*pair) for pair in zip(recovered.nan_to_num(), true, strict=True)]
    lost = ~recovered.flatten(1).isfinite().all(dim=1)
    statuses = found.statuses or (found.status,) * setting.batch
    return Outcome(
        images=recovered,
        truth=true,
        psnr=torch.where(lost, -torch.inf, torch.tensor(scores)),
        claimed=torch.tensor([status is Status.RECOVERED for status in statuses]),
        mean_image=torch.tensor([psnr_db(mean, image) for image in true]),
        label_error=_label_error(recovery, labels[pairs]),
        label_seconds=labelled - started,
        seconds=seconds,
    )


def given_labels(
    leak: GradientLeak, truth: Truth, error: float, generator: torch.Generator
) -> LabelRecovery:
    """Return what a label attack would answer, with relative errors of all that it recovers."""
    size = len(truth.labels)
    features = Network.of(leak).double_features(truth.images)
    has_bias = any(name.endswith("bias") for name in leak.gradients)
    scale = 0.0 if has_bias else error  # a bias leaves no scale to be wrong
    draws = torch.randn(size, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(truth.labels.shape, generator=generator, dtype=torch.float64)
    spread = torch.randn(features.shape, generator=generator, dtype=torch.float64)
    size_of = features.square().mean(dim=1, keepdim=True).sqrt()
    labels = truth.labels.double() + error * noise
    features = features * (1 + scale * draws) + error * size_of * spread
    return LabelRecovery.of(
        [
            ExampleLabel(Status.RECOVERED, label=label, feature=feature)
            for label, feature in zip(labels, features, strict=True)
        ]
    )


def wide_fcn(
    *,
    num_classes: int,
    input_shape: tuple[int, int, int],
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    init: str = "default",
) -> nn.Module:
    """Return n-1024-512-512-K with ReLU between the layers.

    Args:
        num_classes: K.
        input_shape: (C, H, W), n pixels.
        bias: whether the layers have biases.
        mean: of each channel.
        std: of each channel.
        init: "default" or "he", how the weights are drawn; biases are drawn as PyTorch does.
    """
    widths = (int(np.prod(input_shape)), 1024, 512, 512, num_classes)
    return linear_chain(widths, bias=bias, is_he=init == "he", mean=mean, std=std)


def gallery(seed: int) -> Figure:
    """Draw what comes out of one weight update of 16 photographs, as PyTorch makes networks."""
    return pictures(Setting("photos", 16, "update", bias=True), seed)


def pictures(setting: Setting, seed: int, *, most: int = 8) -> Figure:
    """Draw recovered images of one batch over the originals, with their PSNR.

    Args:
        setting: what is attacked.
        seed: of images and weights.
        most: images that are drawn.
    """
    outcome = attack_batch(setting, seed)
    shown = slice(min(most, setting.batch))
    title = (
        f"{setting.batch} {setting.source} images, {setting.network}, {setting.init} weights, "
        f"{setting.sent_as}"
    )
    return draw_pairs(outcome.images[shown], outcome.truth[shown], outcome.psnr[shown], title)


def draw_pairs(found: Tensor, truth: Tensor, psnr: Tensor, title: str) -> Figure:
    """Draw recovered images (N, C, H, W) over the true ones, eight or so side by side.

    Args:
        found: NaN where there is none.
        truth: in the same order.
        psnr: (N,), in dB.
        title: what is shown.
    """
    width = 1.3 * min(len(found), 8)
    figure = Figure(figsize=(width, 0.6 + 2 * width / len(found)), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False)
    for column in range(len(found)):
        for line, images in enumerate((found, truth)):
            image = images[column].nan_to_num(0.5).permute(1, 2, 0).numpy()
            axes[line, column].imshow(image, cmap="gray", vmin=0, vmax=1)
            axes[line, column].set_axis_off()
        axes[0, column].set_title(f"{float(psnr[column]):.0f} dB", fontsize=8)
    figure.suptitle(f"{title}: recovered, above; the client's, below", fontsize=9)
    return figure


def figure(table: Sequence[Mapping[str, object]]) -> Figure:
    """Draw the median PSNR over the batch size, with biases, a line for each source and kind."""
    drawing = Figure(figsize=(6.4, 4), layout="constrained")
    axes = drawing.subplots()
    base = {"network": "wide-fcn", "bias": True, "augmentation": "label-smoothing"}
    kept = [row for row in table if all(row[name] == value for name, value in base.items())]
    names = ("source", "sent_as", "init")
    for line in sorted({tuple(str(row[name]) for name in names) for row in kept}):
        points = [row for row in kept if tuple(str(row[name]) for name in names) == line]
        batches = [float(str(row["batch"])) for row in points]
        median = [float(str(row["psnr_median_db"])) for row in points]
        axes.plot(batches, median, marker="o", label=", ".join(line))
    axes.axhline(CLAIM_DB, linestyle=":", color="grey")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("examples behind the gradient")
    axes.set_ylabel("median PSNR in dB")
    axes.legend(fontsize=7)
    return drawing


def _row(setting: Setting, outcomes: Sequence[Outcome]) -> dict[str, object]:
    psnr = torch.cat([outcome.psnr for outcome in outcomes])
    claimed = torch.cat([outcome.claimed for outcome in outcomes])
    mean_image = torch.cat([outcome.mean_image for outcome in outcomes])
    return {
        "attack": "analytic",
        **{name: getattr(setting, name) for name in Setting.__dataclass_fields__},
        "seeds": len(outcomes),
        "psnr_median_db": round(float(psnr.quantile(0.5, interpolation="nearest")), 1),
        "psnr_worst_db": round(float(psnr.min()), 1),
        "images": len(psnr),
        "recovered": int(claimed.sum()),
        "false_accepts": int((claimed & (psnr < CLAIM_DB)).sum()),
        "mean_image_db": round(float(mean_image.median()), 1),
        "label_error": f"{np.median([o.label_error for o in outcomes]):.1g}",
        "label_seconds": round(float(np.median([o.label_seconds for o in outcomes])), 2),
        "image_seconds": round(float(np.median([o.seconds for o in outcomes])), 2),
    }


def _label_error(recovery: LabelRecovery, labels: Tensor) -> float:
    if recovery.labels is None:
        return float("inf")
    error = (recovery.labels - labels.double()).abs().amax(dim=1)
    return float(error.nan_to_num(torch.inf).median())


@functools.cache
def _data(source: str) -> Dataset:
    if source == "photos-64":
        return build_dataset("photos", options={"size": 64})
    return build_dataset(source, options={})


def _model(setting: Setting, data: Dataset, seed: int) -> nn.Module:
    if setting.is_trained:
        name = (setting.network, setting.source, setting.augmentation)
        return trained(*name, bias=setting.bias, seed=seed, init=setting.init)[0]
    own = setting.network == "wide-fcn"
    network = "fl_sim.bench.image_batches:wide_fcn" if own else setting.network
    return untrained(
        network, data, classes=CLASSES, bias=setting.bias, seed=seed, init=setting.init
    )
