"""Images from convolutional networks: networks, updates, training, and the rank rule.

Each example is attacked alone, from the label that `soft-label` recovers. `rule` is what the count
of equations says beforehand; where it says no, the attack is also told to try nevertheless, and
what that reaches stands beside it.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from attacks import GradientLeak, ImageAttack, LabelRecovery, Reconstruction, Status
from attacks.images.r_gap import RGAP
from attacks.images.relu_fit import ReLUFit
from attacks.labels.soft_label import SoftLabelRecovery
from fl_sim.bench.training import accuracy
from fl_sim.bench.victims import augment, dataset, draw_batch, initial_weights, untrained
from fl_sim.leakage.judge import psnr_db
from fl_sim.models import Normalize
from fl_sim.seeds import numpy_generator, seeded_layers
from fl_sim.testing.leaks import SentAs, leak_of

TITLE = "Images of single examples from convolutional networks"
NOTES = (
    "`lenet`, whose activations are invertible, by `r-gap`; networks with ReLU by `relu-fit`.",
    "PSNR in dB; an image that wasn't found counts as minus infinity, and is never left out. "
    "Published: R-GAP 49.0 dB on CIFAR-10 (breaching's notebook), hard label, with a bias.",
    f"{initial_weights('lenet', 'convnet', 'resnet18')} Those of narrower `convnet`s are "
    "PyTorch's.",
)

SEEDS = 3
SENT_AS: tuple[SentAs, ...] = ("float32", "update")
NEEDED_DB = 50.0
"""What RECOVERED claims."""
RATES = {"lenet": 5e-3, "convnet": 1e-3}
"""Adam's learning rate."""
NARROW = ((32, 32), (32, 16), (16, 16), (16, 8), (8, 8))
"""Channels of a `convnet`'s two convolutions."""


@dataclass(frozen=True)
class Setting:
    """One row: a network in a state of training, a source of images, and how the update is sent."""

    network: str
    source: str
    augmentation: str
    sent_as: SentAs
    bias: bool = False
    steps: int = 0


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure, and yield one row for each setting.

    Args:
        quick: few images, and no training.
        seed: of all draws; weights take it and the next two.
    """
    count = 1 if quick else 7
    for setting in _untrained_settings(quick):
        yield _row(setting, _untrained_victims(setting, count, seed))
    for channels in NARROW[1:3] if quick else NARROW:
        setting = Setting(f"convnet {channels[0]}-{channels[1]}", "photos", "mixup", "float32")
        yield _row(setting, _narrow_victims(setting, channels, count, seed))
    setting = Setting("resnet18", "photos", "mixup", "float32")
    yield _row(setting, _untrained_victims(setting, 1, seed))
    if not quick:
        yield from _trained_rows(seed)


def _untrained_settings(quick: bool) -> Iterator[Setting]:
    for network in ("lenet", "convnet"):
        for source in ("photos", "mnist-5k"):
            for augmentation in ("label-smoothing", "mixup"):
                for sent_as in SENT_AS:
                    yield Setting(network, source, augmentation, sent_as)
        if not quick:
            yield Setting(network, "photos", "mixup", "update", bias=True)
            yield Setting(network, "photo-places", "mixup", "update")


def _untrained_victims(
    setting: Setting, count: int, seed: int
) -> Iterator[tuple[GradientLeak, Tensor]]:
    data = dataset(setting.source)
    for weights in range(seed, seed + SEEDS):
        model = untrained(
            setting.network, data, classes=_classes(setting), bias=setting.bias, seed=weights
        )
        yield from _victims(setting, model, count, weights)


def _narrow_victims(
    setting: Setting, channels: tuple[int, int], count: int, seed: int
) -> Iterator[tuple[GradientLeak, Tensor]]:
    for weights in range(seed, seed + SEEDS):
        yield from _victims(setting, narrow_convnet(*channels, seed=weights), count, weights)


def narrow_convnet(first: int, second: int, *, seed: int) -> nn.Module:
    """Return `convnet` for 32×32 photographs and 10 classes, with other channels and no head bias.

    Args:
        first: channels of the first convolution.
        second: channels of the second.
        seed: of the weights.
    """
    data = dataset("photos")
    with seeded_layers(seed):
        return nn.Sequential(
            Normalize(data.mean, data.std),
            nn.Conv2d(3, first, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(second * 256, 10, bias=False),
        ).eval()


def _trained_rows(seed: int) -> Iterator[dict[str, object]]:
    for network in ("lenet", "convnet"):
        for source in ("photos", "mnist-5k"):
            for steps, model, reached in training(network, source, seed=seed):
                for sent_as in SENT_AS:
                    setting = Setting(network, source, "mixup", sent_as, steps=steps)
                    row = _row(setting, _victims(setting, copy.deepcopy(model), 10, seed))
                    yield {**row, "accuracy": round(reached, 2)}


def training(
    network: str, source: str, *, seed: int, stops: Iterable[int] = (50, 200, 800)
) -> Iterator[tuple[int, nn.Module, float]]:
    """Train a network on mixed-up examples; yield it, and its accuracy, after some steps of Adam.

    Args:
        network: a name in `fl_sim.MODELS`.
        source: a name in `fl_sim.DATASETS`.
        seed: of weights and draws.
        stops: after which steps.
    """
    data = dataset(source)
    model = untrained(network, data, classes=10, seed=seed)
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=RATES[network])
    draws = numpy_generator(seed, "training")
    wanted = set(stops)
    for step in range(1, max(wanted) + 1):
        chosen = torch.from_numpy(draws.integers(len(data.images), size=128))
        hard = one_hot(data.labels[chosen], 10).double()
        images, labels = augment(data.images[chosen], hard, "mixup", draws)
        gradients = torch.autograd.grad(cross_entropy(model(images), labels), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        if step in wanted:
            yield step, model, accuracy(model, data)


def _victims(
    setting: Setting, model: nn.Module, count: int, seed: int
) -> Iterator[tuple[GradientLeak, Tensor]]:
    data, classes = dataset(setting.source), _classes(setting)
    images, labels = draw_batch(data, count, setting.augmentation, classes=classes, seed=seed)
    for image, label in zip(images, labels, strict=True):
        yield leak_of(model, image[None], label[None], sent_as=setting.sent_as), image


def _classes(setting: Setting) -> int:
    return max(dataset(setting.source).num_classes, 10)


def _row(setting: Setting, victims: Iterable[tuple[GradientLeak, Tensor]]) -> dict[str, object]:
    scores, claims, seconds = [], [], []
    labels_found, rules, statuses = 0, Counter[str](), Counter[str]()
    classes = 0
    attack: ImageAttack = RGAP()
    trying: ImageAttack = RGAP(respects_rank=False)
    if setting.network != "lenet":
        attack, trying = ReLUFit(), ReLUFit(respects_rank=False, starts=1)
    for leak, image in victims:
        start = time.process_time()
        labels = SoftLabelRecovery()(leak, generator=torch.Generator())
        labels_found += labels.status is Status.RECOVERED
        found = attack(leak, labels, generator=torch.Generator().manual_seed(0))
        seconds.append(time.process_time() - start)
        statuses[found.status.value] += 1
        rule = _rule(labels, found)
        rules[rule] += 1
        tried = found
        if rule == "no":
            tried = trying(leak, labels, generator=torch.Generator().manual_seed(0))
        scores.append(_psnr(tried, image))
        if found.status is Status.RECOVERED:
            claims.append(scores[-1])
        classes = classes or (0 if labels.labels is None else labels.labels.shape[1])
    return {
        "network": setting.network,
        "training steps": setting.steps,
        "accuracy": "",
        "source": setting.source,
        "augmentation": setting.augmentation,
        "head bias": "yes" if setting.bias else "no",
        "classes": classes,
        "sent as": setting.sent_as,
        "images": len(scores),
        "labels recovered": labels_found,
        "rule": _counted(rules),
        "status": _counted(statuses),
        "PSNR median dB": _round(np.median(scores)),
        "PSNR worst dB": _round(min(scores)),
        "called recovered": len(claims),
        "of these below 50 dB": sum(score < NEEDED_DB for score in claims),
        "CPU seconds": round(float(np.median(seconds)), 2),
    }


def _rule(labels: LabelRecovery, found: Reconstruction) -> str:
    """Return what was said before any optimisation: whether the network and its size allow it."""
    if labels.features is None:
        return "no label"
    if found.status is Status.NOT_APPLICABLE:
        return "not covered"
    assert found.images is not None
    return "no" if found.images.isnan().all() else "yes"


def _psnr(found: Reconstruction, image: Tensor) -> float:
    """Return the PSNR in dB; 0, a failure, where there is no image."""
    if found.images is None or not found.images.isfinite().all():
        return 0.0
    return psnr_db(found.images[0], image)


def _counted(values: Counter[str]) -> str:
    if len(values) == 1:
        return next(iter(values))
    return ", ".join(f"{count} {value}" for value, count in values.most_common())


def _round(value: Any) -> float:
    return round(float(value), 1)
