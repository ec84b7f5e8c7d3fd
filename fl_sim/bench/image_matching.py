"""Images by gradient matching: what labels and features help, and several local steps.

Settings of one question attack the same images from the same starts, and differences are paired.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import one_hot

from attacks import GradientLeak, LabelRecovery, Reconstruction
from attacks.images.feature_matching import FeatureMatching
from attacks.images.inverting_gradients import InvertingGradients
from attacks.labels.soft_label import SoftLabelRecovery
from attacks.matching.attack import GradientMatching
from fl_sim.bench.matching import (
    FOUND_NOTE,
    SMOOTH,
    Victim,
    difference,
    drawn,
    interval_of,
    known,
    psnrs,
    score_columns,
    seeded,
    together,
    unknown,
    victims_of,
)
from fl_sim.bench.victims import initial_weights
from fl_sim.report.drawing import MARKERS, MUTED, SERIES

TITLE = "Images by gradient matching: labels, features, local steps"
NOTES = (
    "Photographs of 32×32 pixels, ten classes, the last layer without a bias, one example unless "
    "the row says otherwise. `inverting-gradients` (IG) with total variation 1e-4 and far fewer "
    "iterations than the papers' (4,800 and 24,000), as the column says: the settings are compared "
    "with each other, and longer searches reach more.",
    "Rows `label`: Gaussian noise of 1e-2 of each layer's root mean square on the gradient, "
    "without which recovered and true labels agree to 1e-7; half of the examples are smoothed, "
    "half mixed up. `difference` is the mean of PSNR minus that with the true soft label, paired "
    "by image and start, with its 95 % interval (Student's t).",
    "Rows `feature`: `feature-matching` on mixed-up examples, with a growing weight of the "
    "recovered feature and under two strengths of noise on the gradient; `difference` is against "
    "weight 0. Under noise of 1e-2 and 1e-1 features are off by 0.3 and 3 %.",
    "Rows `steps`: full batches of two images, rate 0.1, float32 weights; the true labels given; "
    "`difference` is against `naive`.",
    f"{FOUND_NOTE} Rows below it learned nothing that shows in pixels: `lenet` at these lengths.",
    initial_weights("lenet", "convnet"),
)
NOISE = 1e-2
WEIGHTS = (0.0, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Of the feature."""
FEATURE_NOISES = (1e-2, 1e-1)
RATE = 0.1
"""The learning rate of several local steps."""


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure, and yield one row for each setting.

    Args:
        quick: few images and iterations, and `lenet` alone.
        seed: of all draws.
    """
    networks = ("lenet",) if quick else ("convnet", "lenet")
    length = 20 if quick else 150
    for network in networks:
        yield from _label_rows(network, 2 if quick else 15, length, seed)
    for network in networks:
        for noise in FEATURE_NOISES[: 1 if quick else None]:
            yield from _feature_rows(network, 2 if quick else 8, length, seed, noise)
    for network in networks:
        yield from _step_rows(network, (2,) if quick else (2, 5), length // 2, seed)


def _label_rows(network: str, count: int, length: int, seed: int) -> Iterator[dict[str, object]]:
    """Attack smoothed and mixed-up examples with labels of four kinds."""
    attack = InvertingGradients(iterations=length, total_variation=SMOOTH)
    victims = victims_of(network, ("label-smoothing", "mixup"), count, seed, noise=NOISE)
    kinds = {
        "true": [known(victim.labels) for victim in victims],
        "recovered": [_recovered(victim.leak) for victim in victims],
        "hard": [known(_hardened(victim.labels)) for victim in victims],
        "free": [unknown()] * len(victims),
    }
    base: list[float] | None = None
    for kind, labels in kinds.items():
        row, base = _row("label", network, f"IG, {kind} label", attack, victims, labels, base)
        yield row


def figure(found: Sequence[dict[str, Any]]) -> Figure:
    """Draw what the feature adds to the PSNR over its weight, with 95 % intervals."""
    drawing = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = drawing.subplots()
    kept = [row for row in found if row["question"] == "feature" and row["difference"]]
    for index, name in enumerate(dict.fromkeys(_feature_line(row) for row in kept)):
        own = [row for row in kept if _feature_line(row) == name]
        values = [interval_of(row["difference"]) for row in own]
        axes.errorbar(
            [float(row["setting"].split()[1].rstrip(",")) for row in own],
            [mean for mean, _, _ in values],
            [[mean - low for mean, low, _ in values], [high - mean for mean, _, high in values]],
            color=SERIES[index],
            marker=MARKERS[index],
            capsize=3,
            label=name,
        )
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("weight of the feature")
    axes.set_ylabel("PSNR against weight 0, dB")
    drawing.legend(loc="outside lower center", ncols=2)
    return drawing


def _feature_line(row: dict[str, Any]) -> str:
    return f"{row['network']}, {row['setting'].partition(', ')[2]}"


def _feature_rows(
    network: str, count: int, length: int, seed: int, noise: float
) -> Iterator[dict[str, object]]:
    """Attack mixed-up examples with a growing weight of the recovered feature."""
    victims = victims_of(network, ("mixup",), count, seed, noise=noise)
    kept = [(victim, _recovered(victim.leak)) for victim in victims]
    kept = [(victim, labels) for victim, labels in kept if labels.features is not None]
    if not kept:
        return
    victims, labels = [victim for victim, _ in kept], [recovery for _, recovery in kept]
    base: list[float] | None = None
    for weight in WEIGHTS:
        attack = FeatureMatching(
            iterations=length, total_variation=SMOOTH, feature_weight=weight, labels="given"
        )
        setting = f"weight {weight:g}, noise {noise:g}"
        row, base = _row("feature", network, setting, attack, victims, labels, base)
        yield row


def _step_rows(
    network: str, steps: Sequence[int], length: int, seed: int
) -> Iterator[dict[str, object]]:
    """Attack updates of several local steps with the three models of them."""
    model, images, labels = drawn(network, "label-smoothing", 4, seed)
    pairs = (slice(0, 2), slice(2, 4))
    for count in steps:
        victims = [
            Victim(_trained(model, images[pair], labels[pair], count), images[pair], labels[pair])
            for pair in pairs
        ]
        base: list[float] | None = None
        for local in ("naive", "surrogate", "unrolled"):
            attack = InvertingGradients(
                iterations=length, total_variation=SMOOTH, local=local, labels="given"
            )
            setting, told = f"{count} steps, {local}", [known(victim.labels) for victim in victims]
            row, base = _row("steps", network, setting, attack, victims, told, base)
            yield row


def _row(
    question: str,
    network: str,
    setting: str,
    attack: GradientMatching,
    victims: Sequence[Victim],
    labels: Sequence[LabelRecovery],
    base: list[float] | None,
) -> tuple[dict[str, object], list[float]]:
    """Attack all victims; return a row, and the scores to which the next ones are compared.

    Args:
        question: that the row answers.
        network: a name in `fl_sim.MODELS`.
        setting: what the row differs in.
        attack: with its budget.
        victims: all of them.
        labels: of each, as far as they are known.
        base: scores of the first setting; None: this is the first.
    """
    started = time.process_time()
    found: list[Reconstruction] = together(attack, [victim.leak for victim in victims], labels)
    seconds = time.process_time() - started
    truths = [victim.images for victim in victims]
    scores = psnrs(found, truths)
    row = {
        "question": question,
        "network": network,
        "setting": setting,
        "images": len(scores),
        "labels known": sum(len(one.labels) for one in labels if one.labels is not None),
        "iterations": attack.iterations,
        **score_columns(found, truths),
        "difference": "" if base is None else difference(scores, base),
        "CPU seconds": round(seconds, 1),
    }
    return row, scores if base is None else base


def _trained(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> GradientLeak:
    """Return the update of so many full-batch steps of SGD."""
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(steps):
        leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
        logits = torch.func.functional_call(model, leaves, (images,))
        loss = torch.nn.functional.cross_entropy(logits, labels)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        weights = {
            name: (weight - RATE * slope).detach()
            for (name, weight), slope in zip(leaves.items(), slopes, strict=True)
        }
    sent = {n: (p.detach().double() - weights[n]) / RATE for n, p in model.named_parameters()}
    return GradientLeak(
        model,
        sent,
        len(images),
        (images.shape[1], images.shape[2], images.shape[3]),
        local_steps=steps,
        lr=RATE,
        update_dtype=torch.float32,
        examples=len(images),
        schedule="full-batch",
    )


def _recovered(leak: GradientLeak) -> LabelRecovery:
    return SoftLabelRecovery()(leak, generator=seeded(0))


def _hardened(labels: Tensor) -> Tensor:
    return one_hot(labels.argmax(dim=1), labels.shape[1])
