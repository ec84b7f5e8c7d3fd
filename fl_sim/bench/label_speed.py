"""How fast label recovery is, beside the paper's first stage and beside one look at the problem."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from attacks import GradientLeak, Knowledge
from attacks.soft_label import SoftLabelRecovery
from attacks.soft_label_pso import SoftLabelPSO
from fl_sim.bench.labels import Cell, head_leaks

TITLE = (
    "`soft-label` beside the first stage of `soft-label-pso` (L-BFGS from both signs) and beside "
    "one product each of G and W with a vector, the same gradients in turn, one thread"
)
NOTES = (
    "Milliseconds are medians. `soft-label-pso` evaluates its loss for all classes at once; the "
    "paper's code loops over the classes, which costs about K/15 times as much (published: 0.3 to "
    "6 s a gradient).",
)
SHAPES = ((10, 512), (100, 512), (1000, 2048), (5000, 2048))
"""(K, D)."""


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure; one row for each setting."""
    number = 8 if quick else 40
    for classes in (10, 100):
        for augmentation in ("label-smoothing", "mixup"):
            for is_trained in (False, True):
                cell = Cell("lenet", classes, is_trained, False, augmentation)
                model, state = cell.model(seed)
                leaks, _ = head_leaks(model, cell, number, seed)
                yield {
                    "setting": f"lenet, {state}, {augmentation}",
                    "K": classes,
                    "D": 588 if classes == 10 else 768,
                    **_compare(leaks, augmentation),
                }
    for classes, width in SHAPES[: 2 if quick else None]:
        leaks = _large(classes, width, 6 if quick else 20, seed)
        yield {"setting": "untrained, one layer", "K": classes, "D": width} | _compare(leaks, None)


def _compare(leaks: list[GradientLeak], augmentation: str | None) -> dict[str, object]:
    """Time everything on each leak in turn."""
    ours, theirs, reading = SoftLabelRecovery(), SoftLabelPSO(), []
    seconds: dict[str, list[float]] = {"ours": [], "paper": []}
    for leak in leaks:
        *_, (name, gradient) = leak.gradients.items()
        weight = leak.model.get_parameter(name).detach()
        vector = torch.ones(weight.shape[1])
        reading.append(_timed(lambda: (gradient @ vector, weight @ vector)))  # noqa: B023
        seconds["ours"].append(_timed(partial(ours, leak, generator=torch.Generator())))
        if augmentation is not None:
            told = dataclasses.replace(leak, knowledge=Knowledge(type=augmentation))
            problem = theirs.problem(told)
            seconds["paper"].append(_timed(partial(theirs.first_stage, problem)))
    medians = {key: float(np.median(value)) for key, value in seconds.items() if value}
    once = float(np.median(reading))
    paper = medians.get("paper")
    return {
        "gradients": len(leaks),
        "soft-label ms": f"{1e3 * medians['ours']:.2f}",
        "first stage ms": "–" if paper is None else f"{1e3 * paper:.1f}",
        "ratio": "–" if paper is None else f"{paper / medians['ours']:.0f}",
        "reading once ms": f"{1e3 * once:.3f}",
        "soft-label over reading": f"{medians['ours'] / once:.0f}",
    }


def _timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _large(classes: int, width: int, number: int, seed: int) -> list[GradientLeak]:
    """Return leaks of an untrained network 64-D-K, smoothed and mixed labels in turn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, width, bias=False),
            nn.ReLU(),
            nn.Linear(width, classes, bias=False),
        )
        images = 2 * torch.rand(number, 1, 8, 8)
    leaks = []
    for index, image in enumerate(images):
        label = torch.full((1, classes), 0.3 / classes)
        label[0, index % classes] += 0.7
        if index % 2:
            label = torch.zeros(1, classes)
            label[0, index % classes], label[0, (index + 1) % classes] = 0.6, 0.4
        loss = cross_entropy(model(image[None]), label)
        head = model.get_parameter("3.weight")
        gradients = {"3.weight": torch.autograd.grad(loss, head)[0]}
        leaks.append(GradientLeak(model, gradients, batch_size=1, input_shape=(1, 8, 8)))
    return leaks
