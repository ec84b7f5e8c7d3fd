"""Images by gradient matching: what labels and features help, how fast, and where it fails.

Where several settings stand side by side they attack the same images from the same starts, and
differences are paired.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import one_hot

from attacks import ExampleLabel, GradientLeak, LabelRecovery, Reconstruction, Status
from attacks.images.dlg import DLG
from attacks.images.feature_matching import FeatureMatching
from attacks.images.inverting_gradients import InvertingGradients
from attacks.labels.soft_label import SoftLabelRecovery
from attacks.matching.attack import GradientMatching
from fl_sim.bench.matching_speed import plain_search, speeds
from fl_sim.bench.victims import dataset, draw_batch, initial_weights, untrained
from fl_sim.leakage.image_scores import is_identified
from fl_sim.leakage.judge import psnr_db
from fl_sim.testing.leaks import leak_of

TITLE = "Images by gradient matching"
NOTES = (
    "Photographs of 32×32 pixels, ten classes, the last layer without a bias, one example unless "
    "the row says otherwise. `inverting-gradients` (IG) with total variation 1e-4 and far fewer "
    "iterations than the papers' (4,800 and 24,000), as the column says: the settings are compared "
    "with each other, and longer searches reach more.",
    "Rows `label`: Gaussian noise of 1e-2 of each layer's root mean square on the gradient, "
    "without which recovered and true labels agree to 1e-7; half of the examples are smoothed, "
    "half mixed up. `difference` is the mean of PSNR minus that with the true soft label, paired "
    "by image and start, with its 95 % interval (Student's t).",
    "Rows `feature`: `feature-matching` under the same noise, on mixed-up examples; `difference` "
    "is against weight 0.",
    "Rows `quality`: no noise, the true label given, beside a plain loop from the same starts.",
    "Rows `speed`: gradient evaluations a CPU second on one thread, the best of several short "
    "turns that the ways take one after another; `difference` is how many times as many as a "
    "plain loop of double backward does for one victim after another.",
    "Rows `steps`: full batches of two images, rate 0.1, float32 weights; the true labels given.",
    "`found` is the share of images that are nearer to their original than to "
    "other photographs, up to 1,000; `mean image` is the PSNR of a guess that saw no gradient: "
    "rows below it learned nothing that shows in pixels, `lenet` and `resnet18` at these lengths.",
    initial_weights("lenet", "convnet", "resnet18"),
)
NOISE = 1e-2
SMOOTH = 1e-4
"""Weight of total variation."""
WEIGHTS = (0.0, 1e-2, 1e-1, 1.0)
"""Of the feature."""


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
        yield from _speed_rows(network, 2 if quick else 10, seed)
    for network in networks:
        yield from _quality_rows(network, 2 if quick else 6, length, seed)
    for network in networks:
        yield from _feature_rows(network, 2 if quick else 8, length, seed)
    for network in networks:
        yield from _step_rows(network, (2,) if quick else (2, 5), length // 2, seed)
    if quick:
        return
    yield _resnet_row(20, seed)
    if shutil.which("g++"):
        for network in networks:
            yield from _speed_rows(network, 10, seed, is_compiled=True)


def _speed_rows(
    network: str, turns: int, seed: int, *, is_compiled: bool = False
) -> Iterator[dict[str, object]]:
    measured = speeds(network, turns=turns, seed=seed, is_compiled=is_compiled)
    for way, (rate, factor) in measured.items():
        yield _line("speed", network, setting=way, rate=round(rate), difference=factor)


def _label_rows(network: str, count: int, length: int, seed: int) -> Iterator[dict[str, object]]:
    """Attack smoothed and mixed-up examples with labels of four kinds."""
    attack = InvertingGradients(iterations=length, total_variation=SMOOTH)
    victims = _victims(network, ("label-smoothing", "mixup"), count, seed, noise=NOISE)
    recovered = [_recovered(leak) for leak, _, _ in victims]
    kinds: dict[str, list[LabelRecovery]] = {
        "true": [_known(label) for _, _, label in victims],
        "recovered": recovered,
        "hard": [_known(_hardened(label)) for _, _, label in victims],
        "free": [_unknown()] * len(victims),
    }
    scores: dict[str, list[float]] = {}
    for kind, labels in kinds.items():
        started = time.process_time()
        found = _together(attack, [leak for leak, _, _ in victims], labels)
        seconds = time.process_time() - started
        scores[kind] = _psnrs(found, [image for _, image, _ in victims])
        known = sum(one.labels is not None for one in labels)
        yield _line(
            "label",
            network,
            setting=f"IG, {kind} label",
            images=len(victims),
            labels_known=known,
            iterations=length,
            difference=_difference(scores[kind], scores["true"]) if kind != "true" else "",
            **_summary(found, victims),
            seconds=round(seconds, 1),
        )


def _feature_rows(network: str, count: int, length: int, seed: int) -> Iterator[dict[str, object]]:
    """Attack mixed-up examples with a growing weight of the recovered feature."""
    victims = _victims(network, ("mixup",), count, seed, noise=NOISE)
    kept = [(victim, _recovered(victim[0])) for victim in victims]
    kept = [(victim, labels) for victim, labels in kept if labels.features is not None]
    if not kept:
        return
    victims, labels = [victim for victim, _ in kept], [known for _, known in kept]
    base: list[float] = []
    for weight in WEIGHTS:
        attack = FeatureMatching(
            iterations=length, total_variation=SMOOTH, feature_weight=weight, labels="given"
        )
        started = time.process_time()
        found = _together(attack, [leak for leak, _, _ in victims], labels)
        seconds = time.process_time() - started
        scores = _psnrs(found, [image for _, image, _ in victims])
        base = base or scores
        yield _line(
            "feature",
            network,
            setting=f"weight {weight:g}",
            images=len(victims),
            labels_known=len(victims),
            iterations=length,
            difference=_difference(scores, base) if weight else "",
            **_summary(found, victims),
            seconds=round(seconds, 1),
        )


def _quality_rows(network: str, count: int, length: int, seed: int) -> Iterator[dict[str, object]]:
    """Attack smoothed examples, the true label given, beside the plain loop."""
    victims = _victims(network, ("label-smoothing",), count, seed)
    leaks, labels = [leak for leak, _, _ in victims], [_known(label) for _, _, label in victims]
    ig = InvertingGradients(iterations=length, total_variation=SMOOTH)
    few = max(count // 2, 1)

    def plain() -> list[Reconstruction]:
        return [
            plain_search(leak, label, length, SMOOTH, _generator(number))
            for number, (leak, _, label) in enumerate(victims)
        ]

    def dlg() -> list[Reconstruction]:
        return _together(DLG(iterations=length, restarts=4), leaks[:few], labels[:few])

    ways: dict[str, Callable[[], list[Reconstruction]]] = {
        "plain loop, IG": plain,
        "IG": lambda: _together(ig, leaks, labels),
        "DLG, best of 4": dlg,
    }
    base: list[float] = []
    for way, run in ways.items():
        started = time.process_time()
        found = run()
        seconds = time.process_time() - started
        scores = _psnrs(found, [image for _, image, _ in victims])
        base = base or scores
        yield _line(
            "quality",
            network,
            setting=way,
            images=len(found),
            labels_known=len(found),
            iterations=length,
            difference=_difference(scores, base[: len(scores)]) if way != "plain loop, IG" else "",
            **_summary(found, victims[: len(found)]),
            seconds=round(seconds, 1),
        )


def _step_rows(
    network: str, steps: Sequence[int], length: int, seed: int
) -> Iterator[dict[str, object]]:
    """Attack updates of several local steps with the three models of them."""
    model, images, labels = _drawn(network, "label-smoothing", 4, seed)
    for count in steps:
        leaks = [
            _trained(model, images[at : at + 2], labels[at : at + 2], count)
            for at in range(0, 4, 2)
        ]
        known = [_known(labels[at : at + 2]) for at in range(0, 4, 2)]
        for local in ("unrolled", "surrogate", "naive"):
            attack = InvertingGradients(
                iterations=length, total_variation=SMOOTH, local=local, labels="given"
            )
            started = time.process_time()
            found = _together(attack, leaks, known)
            seconds = time.process_time() - started
            scores = [_paired(one, images[2 * at : 2 * at + 2]) for at, one in enumerate(found)]
            flat = [score for pair in scores for score in pair]
            yield _line(
                "steps",
                network,
                setting=f"{count} steps, {local}",
                images=len(flat),
                labels_known=len(flat),
                iterations=length,
                median=_round(np.median(flat)),
                worst=_round(min(flat)),
                above=_share([score > 20 for score in flat]),
                seconds=round(seconds, 1),
            )


def _resnet_row(length: int, seed: int) -> dict[str, object]:
    victims = _victims("resnet18", ("label-smoothing",), 1, seed)
    leak, image, label = victims[0]
    started = time.process_time()
    attack = InvertingGradients(iterations=length, total_variation=SMOOTH)
    found = [attack(leak, _known(label), generator=_generator(0))]
    seconds = time.process_time() - started
    return _line(
        "resnet18",
        "resnet18",
        setting="IG, true label, batch norm in eval mode",
        images=1,
        labels_known=1,
        iterations=length,
        **_summary(found, [(leak, image, label)]),
        seconds=round(seconds, 1),
    )


Victim = tuple[GradientLeak, Tensor, Tensor]
"""A leak, and the image (C, H, W) and the label (1, K) behind it."""


def _victims(
    network: str, augmentations: Sequence[str], count: int, seed: int, *, noise: float = 0.0
) -> list[Victim]:
    """Return so many examples of each augmentation, of one network."""
    found = []
    draws = _generator(seed)
    for augmentation in augmentations:
        model, images, labels = _drawn(network, augmentation, count, seed)
        found += [
            (_noisy(leak_of(model, image[None], label[None]), noise, draws), image, label[None])
            for image, label in zip(images, labels, strict=True)
        ]
    shared = found[0][0].model
    return [(dataclasses.replace(leak, model=shared), *rest) for leak, *rest in found]


def _drawn(
    network: str, augmentation: str, count: int, seed: int
) -> tuple[nn.Module, Tensor, Tensor]:
    data = dataset("photos")
    model = untrained(network, data, classes=10, seed=seed)
    return model, *draw_batch(data, count, augmentation, classes=10, seed=seed)


def _noisy(leak: GradientLeak, noise: float, draws: torch.Generator) -> GradientLeak:
    if not noise:
        return leak
    gradients = {
        name: part + noise * part.square().mean().sqrt() * torch.randn(part.shape, generator=draws)
        for name, part in leak.gradients.items()
    }
    return dataclasses.replace(leak, gradients=gradients)


def _trained(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> GradientLeak:
    """Return the update of so many full-batch steps of SGD at rate 0.1."""
    rate, weights = 0.1, {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(steps):
        leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
        logits = torch.func.functional_call(model, leaves, (images,))
        loss = torch.nn.functional.cross_entropy(logits, labels)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        weights = {
            name: (weight - rate * slope).detach()
            for (name, weight), slope in zip(leaves.items(), slopes, strict=True)
        }
    sent = {n: (p.detach().double() - weights[n]) / rate for n, p in model.named_parameters()}
    return GradientLeak(
        model,
        sent,
        len(images),
        (images.shape[1], images.shape[2], images.shape[3]),
        local_steps=steps,
        lr=rate,
        update_dtype=torch.float32,
        examples=len(images),
        schedule="full-batch",
    )


def _together(
    attack: GradientMatching, leaks: Sequence[GradientLeak], labels: Sequence[LabelRecovery]
) -> list[Reconstruction]:
    """Attack all victims, those with known labels as one, and the others as another."""
    found: dict[int, Reconstruction] = {}
    for is_known in (True, False):
        chosen = [n for n, one in enumerate(labels) if (one.labels is not None) == is_known]
        if chosen:
            answers = attack.together(
                [leaks[n] for n in chosen],
                [labels[n] for n in chosen],
                [_generator(n) for n in chosen],
            )
            found |= dict(zip(chosen, answers, strict=True))
    return [found[n] for n in range(len(leaks))]


def _recovered(leak: GradientLeak) -> LabelRecovery:
    return SoftLabelRecovery()(leak, generator=torch.Generator().manual_seed(0))


def _known(labels: Tensor) -> LabelRecovery:
    return LabelRecovery.of([ExampleLabel(Status.RECOVERED, label=one.double()) for one in labels])


def _unknown() -> LabelRecovery:
    return LabelRecovery(Status.NOT_APPLICABLE, "no label attack was asked", batch_size=1)


def _hardened(labels: Tensor) -> Tensor:
    return one_hot(labels.argmax(dim=1), labels.shape[1])


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _psnrs(found: Sequence[Reconstruction], images: Sequence[Tensor]) -> list[float]:
    """Return the PSNR in dB; 0, a failure, where there is no image."""
    return [
        0.0 if one.images is None else psnr_db(one.images[0], image)
        for one, image in zip(found, images, strict=False)
    ]


def _paired(found: Reconstruction, images: Tensor) -> list[float]:
    """Return the PSNRs of two images in the order that suits them best."""
    if found.images is None:
        return [0.0, 0.0]
    orders = ([0, 1], [1, 0])
    return max(
        (
            [psnr_db(one, im) for one, im in zip(found.images[o], images, strict=True)]
            for o in orders
        ),
        key=sum,
    )


def _summary(found: Sequence[Reconstruction], victims: Sequence[Victim]) -> dict[str, Any]:
    scores = _psnrs(found, [image for _, image, _ in victims])
    data = dataset("photos")
    others, mean = data.test_images[:1000], data.test_images.mean(dim=0)
    named = [
        one.images is not None and is_identified(one.images[0], image[None], 0, others)
        for one, (_, image, _) in zip(found, victims, strict=True)
    ]
    return {
        "median": _round(np.median(scores)),
        "worst": _round(min(scores)),
        "above": _share([score > 30 for score in scores]),
        "found": _share([bool(one) for one in named]),
        "mean_image": _round(np.median([psnr_db(mean, image) for _, image, _ in victims])),
        "claimed": sum(one.status is Status.RECOVERED for one in found),
    }


def _difference(scores: Sequence[float], base: Sequence[float]) -> str:
    """Return the mean difference with its 95 % interval."""
    rest = np.array(scores) - np.array(base)
    if len(rest) < 2:
        return f"{rest.mean():+.2f}"
    half = stats.t.ppf(0.975, len(rest) - 1) * rest.std(ddof=1) / len(rest) ** 0.5
    return f"{rest.mean():+.2f} ({rest.mean() - half:+.2f} to {rest.mean() + half:+.2f})"


def _line(
    question: str,
    network: str,
    *,
    setting: str,
    images: int | str = "",
    labels_known: int | str = "",
    iterations: int | str = "",
    median: float | str = "",
    worst: float | str = "",
    difference: str = "",
    above: str = "",
    found: str = "",
    mean_image: float | str = "",
    claimed: int | str = "",
    rate: int | str = "",
    seconds: float | str = "",
) -> dict[str, object]:
    return {
        "question": question,
        "network": network,
        "setting": setting,
        "images": images,
        "labels known": labels_known,
        "iterations": iterations,
        "PSNR median dB": median,
        "PSNR worst dB": worst,
        "difference": difference,
        "above 30 dB (steps: 20)": above,
        "found": found,
        "mean image dB": mean_image,
        "called recovered": claimed,
        "evaluations a CPU second": rate,
        "CPU seconds": seconds,
    }


def _share(holds: Sequence[bool]) -> str:
    return f"{sum(holds)} of {len(holds)}"


def _round(value: Any) -> float:
    return round(float(value), 1)
