"""Label recovery from whole batches: how many examples, from which precision, at which cost.

Real images, all augmentations within one batch. Everything is blind: an example counts as found
where `soft-label` calls it RECOVERED, and as a false accept where its label is then off by more
than 1e-2. Beside it stands a simple prototype: HiGHS programs with random objectives, and rays
accepted for their zeros alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from attacks import GradientLeak, LabelRecovery, Status
from attacks.batch.rest import peel
from attacks.batch.sharpen import sharpen
from attacks.batch.subspace import find_subspace
from attacks.labels.soft_label import SoftLabelRecovery
from attacks.numerics.interior_point import solve_by_simplex
from attacks.victim.network import Network
from fl_sim.bench.training import trained
from fl_sim.bench.victims import (
    AUGMENTATIONS,
    INITS,
    dataset,
    draw_batch,
    inits,
    linear_chain,
    untrained,
)
from fl_sim.data import Dataset
from fl_sim.seeds import seeded_layers, torch_generator
from fl_sim.testing.leaks import SentAs, leak_of

TITLE = "Every example's soft label and feature from the gradient of a whole batch by `soft-label`"
NOTES = (
    "“found” counts the examples that are called RECOVERED; “false” those of them that are wrong. "
    "Published: SPEAR recovers hard labels of about 25 examples, with a bias (arXiv 2403.03945), "
    "SPEAR++ of about ten times as many (arXiv 2510.24200).",
    INITS,
)

STRICT, TOLERANCE = 1e-3, 1e-2
"""L∞ error of a label that counts as exact, and that RECOVERED stays below."""
PRECISIONS: tuple[SentAs, ...] = ("float64", "float32", "update")
SPEAR, SPEAR_PLUS = 25, 250
"""Largest batches reported, for hard labels and with a bias: "SPEAR", NeurIPS 2024, arXiv
2403.03945; and about ten times that for "SPEAR++", arXiv 2510.24200."""
TOLD_FROM = 64
"""Batch from which B is always told."""
TRAINED_SEEDS = 3
"""Trained networks to a setting."""
PROTOTYPE_BUDGET = 8
"""Programs of the prototype, for each example."""


@dataclass(frozen=True)
class Cell:
    """One setting: a source of images, a network, a batch.

    Args:
        source: "MNIST", "one digit", "photographs" or "100 places".
        network: "n-D-K" or a name in `fl_sim.MODELS`.
        width: D.
        classes: K.
        batch: B.
        init: "default" or "he", how the weights are drawn.
        is_trained: from there to an accuracy of at least 0.9, or not at all.
    """

    source: str
    network: str
    width: int
    classes: int
    batch: int
    init: str = "default"
    is_trained: bool = False


BOTH = inits("mlp")
UNTRAINED = [
    *(
        Cell(s, "n-D-K", 512, 100, b, init)
        for init, s, b in itertools.product(BOTH, ("MNIST", "one digit"), (8, 16, 32))
    ),
    *(Cell("photographs", "n-D-K", 512, 100, b, init) for init in BOTH for b in (16, 32)),
    *(
        Cell(s, "n-D-K", 1024, 100, 64, init)
        for init, s in itertools.product(BOTH, ("MNIST", "one digit", "photographs"))
    ),
    *(
        Cell(s, "n-D-K", 1024, 200, 96, init)
        for init, s in itertools.product(BOTH, ("MNIST", "one digit"))
    ),
    *(Cell(s, "n-D-K", 1024, 400, b) for s in ("MNIST", "one digit") for b in (128, 200)),
    Cell("MNIST", "n-D-K", 1024, 400, 200, "he"),
    Cell("MNIST", "n-D-K", 512, 400, 128),
    Cell("MNIST", "n-D-K", 512, 400, 160),
    *(Cell("MNIST", "mlp", 512, 100, b, init) for init in BOTH for b in (8, 16, 32)),
]
TRAINED = [
    *(
        Cell("100 places", "mlp", 512, 100, b, init, is_trained=True)
        for init, b in itertools.product(BOTH, (8, 16, 32))
    ),
    Cell("100 places", "mlp", 512, 100, 64, is_trained=True),
]
QUICK = [
    Cell("MNIST", "n-D-K", 512, 100, 16),
    Cell("MNIST", "n-D-K", 512, 100, 16, "he"),
    Cell("one digit", "n-D-K", 512, 100, 32),
    Cell("photographs", "n-D-K", 512, 100, 32),
]


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure; one row for each setting, precision and method."""
    cells = QUICK if quick else [*UNTRAINED, *TRAINED]
    for cell in cells:
        for own in range(seed, seed + (TRAINED_SEEDS if cell.is_trained else 1)):
            yield from _rows_of(cell, quick, own)


def _rows_of(cell: Cell, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    model, images, labels = _victim(cell, seed)
    for precision in PRECISIONS:
        for told in (True,) if quick or cell.batch >= TOLD_FROM else (True, False):
            size = len(images) if told else None
            leak = leak_of(model, images, labels, sent_as=precision, batch_size=size)
            features = _features(model, images)
            start = time.perf_counter()
            answer = SoftLabelRecovery()(leak, generator=torch_generator(seed, "attack"))
            seconds = time.perf_counter() - start
            measured = judge(answer, labels.double(), features)
            yield _row(cell, precision, told, "soft-label", measured, seconds) | {"seed": seed}
    if cell.batch <= 32:
        leak = leak_of(model, images, labels, sent_as="float64")
        yield _prototype_row(cell, leak, seed) | {"seed": seed}


def _victim(cell: Cell, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network and a batch, a quarter of it with each augmentation."""
    data = _source(cell.source, seed)
    if cell.is_trained:
        kind = "mixup+label-smoothing"
        model, _ = trained(cell.network, "photo-places", kind, seed=seed, init=cell.init)
    elif cell.network == "n-D-K":
        model = _shallow(data, cell, seed)
    else:
        model = untrained(cell.network, data, classes=cell.classes, seed=seed, init=cell.init)
    parts = [
        draw_batch(_quarter(data, part), cell.batch // 4, kind, classes=cell.classes, seed=seed)
        for part, kind in enumerate(AUGMENTATIONS)
    ]
    images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return model, images, labels


def _quarter(data: Dataset, part: int) -> Dataset:
    """Keep every fourth image: one image twice in a batch is one ray, and no label explains it."""
    return dataclasses.replace(data, images=data.images[part::4], labels=data.labels[part::4])


def _source(name: str, seed: int) -> Dataset:
    names = {"photographs": "photos", "100 places": "photo-places"}
    data = dataset(names.get(name, "mnist-5k"))
    if name != "one digit":
        return data
    kept = data.labels == seed % data.num_classes
    return dataclasses.replace(data, images=data.images[kept], labels=data.labels[kept])


def _shallow(data: Dataset, cell: Cell, seed: int) -> nn.Module:
    """Return n-D-K without biases, D chosen freely."""
    widths = (data.images[0].numel(), cell.width, cell.classes)
    with seeded_layers(seed):
        return linear_chain(
            widths, bias=False, is_he=cell.init == "he", mean=data.mean, std=data.std
        )


@torch.no_grad()
def _features(model: nn.Module, images: Tensor) -> Tensor:
    assert isinstance(model, nn.Sequential)
    features: Tensor = model[:-1](images.to(next(model.parameters()).dtype))
    return features.double()


def judge(answer: LabelRecovery, labels: Tensor, features: Tensor) -> dict[str, object]:
    """Compare what is called RECOVERED with the truth, rows paired by both errors.

    Args:
        answer: to the leak.
        labels: (B, K), the truth.
        features: (B, D), the truth.
    """
    rows_found = [r for r, status in enumerate(answer.statuses) if status is Status.RECOVERED]
    exact = exact_features = false = 0
    if rows_found:
        assert answer.labels is not None
        assert answer.features is not None
        off = (answer.labels[rows_found][:, None] - labels).abs().amax(dim=-1)
        away = torch.cdist(answer.features[rows_found], features) / features.norm(dim=-1)
        pairs = linear_sum_assignment((off.clamp(max=1) + away.clamp(max=1)).numpy())
        exact = int((off[pairs] < STRICT).sum())
        exact_features = int((away[pairs] < STRICT).sum())
        false = int((off[pairs] > TOLERANCE).sum())
    why = Counter(part.reason for part in answer.examples or (answer,) if part.reason)
    return {
        "found": len(rows_found),
        "labels < 1e-3": exact,
        "features < 1e-3": exact_features,
        "false": false,
        "refused": "; ".join(f"{count} × {reason}" for reason, count in why.most_common(2)) or "–",
    }


def _row(
    cell: Cell,
    precision: str,
    told: bool,
    method: str,
    measured: dict[str, object],
    seconds: float,
) -> dict[str, object]:
    return {
        "source": cell.source,
        "network": cell.network,
        "init": cell.init,
        "trained": "yes" if cell.is_trained else "no",
        "D": cell.width,
        "K": cell.classes,
        "B": cell.batch,
        "precision": precision,
        "B told": "yes" if told else "no",
        "method": method,
        **measured,
        "seconds": f"{seconds:.2f}",
    }


def _prototype_row(cell: Cell, leak: GradientLeak, seed: int) -> dict[str, object]:
    """Measure random objectives, one HiGHS program each; rays are accepted for their zeros."""
    start = time.perf_counter()
    space = find_subspace(leak, Network.of(leak))
    rest = peel(space, np.empty((0, cell.classes)))
    region = rest.region(space)
    draws = np.random.default_rng(seed)
    rays: list[Any] = []
    for _ in range(PROTOTYPE_BUDGET * cell.batch):
        ray = sharpen(space, rest, solve_by_simplex(region, draws.standard_normal(rest.size)))
        if ray is not None and all(
            np.linalg.norm(r.direction - ray.direction) > 1e-5 for r in rays
        ):
            rays.append(ray)
        if len(rays) == cell.batch:
            break
    seconds = time.perf_counter() - start
    _, images, _ = _victim(cell, seed)
    truth = _features(leak.model, images).numpy()[:, space.live] / space.columns
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    near = [np.linalg.norm(truth - ray.direction, axis=1).min() for ray in rays]
    true = int((np.array(near) < STRICT).sum())
    measured = {
        "found": true,
        "labels < 1e-3": "–",
        "features < 1e-3": true,
        "false": len(rays) - true,
        "refused": "–",
    }
    return _row(cell, "float64", True, "HiGHS, random objectives", measured, seconds)


def figure(found: Sequence[dict[str, Any]]) -> Figure:
    """Draw the share of examples found against B, a panel for each precision."""
    drawing = Figure(figsize=(10.5, 3.4), layout="constrained")
    axes = drawing.subplots(1, len(PRECISIONS), sharey=True)
    ours = [r for r in found if r["B told"] == "yes" and r["method"] == "soft-label"]
    keys = ("source", "network", "trained")
    colors = {line: f"C{number}" for number, line in enumerate(_distinct(ours, keys))}
    for axis, precision in zip(axes, PRECISIONS, strict=True):
        for *line, init in _distinct(ours, (*keys, "init")):
            some = [
                r
                for r in ours
                if [*(r[key] for key in keys), r["init"], r["precision"]]
                == [*line, init, precision]
            ]
            sizes = sorted({int(r["B"]) for r in some})
            shares = [
                np.mean([int(r["found"]) / size for r in some if int(r["B"]) == size])
                for size in sizes
            ]
            source, network, is_trained = line
            name = f"{source}, {network}{', trained' * (is_trained == 'yes')}, {init}"
            style = "o-" if init == "default" else "x:"
            color = colors[source, network, is_trained]
            axis.plot(sizes, shares, style, label=name, markersize=4, color=color)
        for size, name in ((SPEAR, "SPEAR"), (SPEAR_PLUS, "SPEAR++")):
            axis.axvline(size, color="grey", linestyle=":")
            place = axis.get_xaxis_transform()
            axis.text(size, 0.4, name, rotation=90, fontsize=7, ha="right", transform=place)
        axis.set_xscale("log", base=2)
        axis.set_title(precision, fontsize=9)
        axis.set_xlabel("batch size B")
    axes[0].set_ylabel("share of examples recovered")
    axes[0].legend(fontsize=5)
    return drawing


def _distinct(found: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the combinations of some columns, in the order in which they come."""
    return list(dict.fromkeys(tuple(row[key] for key in keys) for row in found))
