"""How fast label recovery is, beside the paper's first stage and beside one look at the problem."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks import GradientLeak
from attacks.labels.soft_label import SoftLabelRecovery
from attacks.labels.soft_label_pso import ScalarProblem, SoftLabelPSO
from fl_sim.bench.labels import Cell, head_leaks
from fl_sim.bench.victims import INIT, initial_weights
from fl_sim.seeds import seeded_layers
from fl_sim.testing import facts_of, gradients_of

TITLE = (
    "`soft-label` beside the first stage of `soft-label-pso` (L-BFGS from both signs) and beside "
    "one product each of G and W with a vector, the same gradients in turn, one thread"
)
NOTES = (
    "Milliseconds are medians. The first stage is timed twice: as `soft-label-pso` runs it, with "
    "its loss evaluated for all classes at once, and with the loop over the classes of the paper's "
    "code. `soft-label` includes everything: finding the last layer, the search, the error bars.",
    f"{initial_weights('lenet')} Those of “one layer” are PyTorch's.",
)
SHAPES = ((10, 512), (100, 512), (1000, 2048), (5000, 2048))
"""(K, D)."""


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure; one row for each setting."""
    number = 8 if quick else 40
    for classes in (10, 100):
        for augmentation in ("label-smoothing", "mixup"):
            for is_trained in (False, True):
                cell = Cell("lenet", INIT["lenet"], classes, is_trained, False, augmentation)
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
    seconds: dict[str, list[float]] = {"ours": [], "paper": [], "loop": []}
    for leak in leaks:
        *_, (name, gradient) = leak.gradients.items()
        weight = leak.model.get_parameter(name).detach()
        vector = torch.ones(weight.shape[1])
        reading.append(_timed(_read, gradient, weight, vector))
        seconds["ours"].append(_timed(ours, leak, generator=torch.Generator()))
        if augmentation is not None:
            told = dataclasses.replace(leak, knowledge=facts_of(augmentation))
            problem = theirs.problem(told)
            seconds["paper"].append(_timed(theirs.first_stage, problem))
            loop = ClassByClass(**vars(problem))
            seconds["loop"].append(_timed(theirs.first_stage, loop))
    medians = {key: float(np.median(value)) for key, value in seconds.items() if value}
    once = float(np.median(reading))
    ours_ms = 1e3 * medians["ours"]

    def shown(key: str, form: str, factor: float) -> str:
        return form.format(factor * medians[key]) if key in medians else "–"

    return {
        "gradients": len(leaks),
        "soft-label ms": f"{ours_ms:.2f}",
        "first stage ms": shown("paper", "{:.1f}", 1e3),
        "ratio": shown("paper", "{:.0f}", 1e3 / ours_ms),
        "class by class ms": shown("loop", "{:.1f}", 1e3),
        "its ratio": shown("loop", "{:.0f}", 1e3 / ours_ms),
        "reading once ms": f"{1e3 * once:.3f}",
        "soft-label over reading": f"{medians['ours'] / once:.0f}",
    }


class ClassByClass(ScalarProblem):
    """The paper's problem, its label computed one class after another, as the paper's code does."""

    def labels(self, scalars: Tensor) -> Tensor:
        """Return ŷ (N, K) at scalars (N,)."""
        p = torch.softmax(self.features(scalars) @ self.weight.T + self.bias, dim=1)
        scales = scalars / self.setting.divisor
        return torch.stack([p[:, k] - alpha / scales for k, alpha in enumerate(self.alpha)], dim=1)


def _read(gradient: Tensor, weight: Tensor, vector: Tensor) -> None:
    gradient @ vector
    weight @ vector


def _timed(call: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    started = time.perf_counter()
    call(*arguments, **options)
    return time.perf_counter() - started


def _large(classes: int, width: int, number: int, seed: int) -> list[GradientLeak]:
    """Return leaks of an untrained network 64-D-K, smoothed and mixed labels in turn."""
    with seeded_layers(seed):
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
        gradients = gradients_of(model, image[None], label)
        del gradients["1.weight"]  # the last layer's is enough
        leaks.append(GradientLeak(model, gradients, batch_size=1, input_shape=(1, 8, 8)))
    return leaks
