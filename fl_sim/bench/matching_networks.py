"""What gradient matching finds by network, training, mode of batch norm and size of the batch."""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attacks import GradientLeak
from attacks.images.inverting_gradients import InvertingGradients
from attacks.types import Mode
from fl_sim.bench.matching import (
    FOUND_NOTE,
    SMOOTH,
    difference,
    interval,
    known,
    mean_psnrs,
    psnrs,
    score_columns,
    seeded,
)
from fl_sim.bench.training import accuracy, take_steps
from fl_sim.bench.victims import dataset, draw_batch, untrained
from fl_sim.seeds import numpy_generator
from fl_sim.testing.leaks import gradients_of

TITLE = "Images by gradient matching, by network"
VIT = "fl_sim.models.vit:vit_tiny"
SOURCE, CLASSES = "photos", 10
STEPS, TRAINING_BATCH = 40, 32
ON_GPU = 1600
"""Iterations where there is one."""
RATES = {"vgg11": 1e-4}
"""Adam's learning rate where it isn't 1e-3."""
INIT = {"vgg11": "torchvision"}
"""Initial weights where they aren't the default: PyTorch's leave `vgg11` next to no gradient."""
NOTES = (
    "Photographs of 32×32 pixels with smoothed labels, which are given; ten classes, the last "
    "layer without a bias; float32 gradients. `inverting-gradients`, total variation 1e-4, one "
    "start, and as many iterations as the column says: few where there is no GPU, so that the "
    "table takes minutes; the papers take 4,800 and 24,000. Clients of a row are attacked as one "
    "search.",
    "`mode` is batch norm's, of the client's step and of the attack: with the model's statistics "
    "(eval) or with the batch's (train). Only `resnet18` has any. "
    f"Trained: {STEPS} steps of Adam at 1e-3 (`vgg11` 1e-4) on batches of "
    f"{TRAINING_BATCH}, in train mode; `accuracy` is on test images.",
    f"{FOUND_NOTE} `difference` is the mean of PSNR minus the mean image's, paired by image, with "
    "its 95 % interval (Student's t). `learned` is “pixels” where that interval is above 0, "
    "“identity” where it isn't and half of the images or more find their original, and else "
    "“nothing”.",
    "Initial weights are PyTorch's in `lenet5`, torchvision's in `vgg11` and `resnet18`, timm's in "
    "`vit_tiny` (12 blocks of width 192, patches of 4×4), whose rows need the extra `vit`.",
)


@dataclass(frozen=True)
class Cell:
    """One row.

    Args:
        network: a name for `build_model`.
        iterations: of the search.
        is_trained: or untrained.
        mode: of batch norm.
        batch: B.
        clients: batches that are attacked, each of other photographs.
    """

    network: str
    iterations: int
    is_trained: bool = False
    mode: Mode = "eval"
    batch: int = 1
    clients: int = 3


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Attack the clients of each cell, and yield a row for it.

    Args:
        quick: few iterations, of `lenet5` alone.
        seed: of weights, images and training.
    """
    for cell in [Cell("lenet5", 10, clients=1)] if quick else cells():
        yield _row(cell, seed)


def cells() -> list[Cell]:
    """Return all cells that this machine can measure, with the iterations that it has time for."""
    has_timm = importlib.util.find_spec("timm") is not None
    bases = [
        Cell("lenet5", 200),
        Cell("lenet5", 200, is_trained=True),
        Cell("vgg11", 30),
        Cell("vgg11", 30, is_trained=True),
        *([Cell(VIT, 24)] if has_timm else []),
        *(
            Cell("resnet18", 12, is_trained=is_trained, mode=mode)
            for is_trained in (False, True)
            for mode in MODES
        ),
    ]
    if torch.cuda.is_available():
        return [
            replace(base, iterations=ON_GPU, batch=batch, clients=clients)
            for base in bases
            for batch, clients in ((1, 8), (4, 2))
        ]
    return [
        replace(base, batch=batch, clients=clients)
        for base in bases
        for batch, clients in ((1, 3 if base.network == "lenet5" else 2), (4, 1))
    ]


MODES: tuple[Mode, ...] = ("eval", "train")


def _row(cell: Cell, seed: int) -> dict[str, object]:
    model, reached = network_of(cell.network, seed, is_trained=cell.is_trained)
    data = dataset(SOURCE)
    images, labels = draw_batch(
        data, cell.batch * cell.clients, "label-smoothing", classes=CLASSES, seed=seed
    )
    attack = InvertingGradients(iterations=cell.iterations, total_variation=SMOOTH)
    truths = _parts(images, cell.batch)
    pairs = list(zip(truths, _parts(labels, cell.batch), strict=True))
    found = attack.together(
        [mode_leak(model, own, label, cell.mode) for own, label in pairs],
        [known(label) for _, label in pairs],
        [seeded(number) for number in range(len(pairs))],
    )
    counted, scores, base = score_columns(found, truths), psnrs(found, truths), mean_psnrs(truths)
    return {
        "network": cell.network.split(":")[-1],
        "training": f"{STEPS} steps" if cell.is_trained else "none",
        "accuracy": "–" if reached is None else f"{reached:.2f}",
        "mode": cell.mode,
        "batch": cell.batch,
        "images": len(images),
        "iterations": cell.iterations,
        **counted,
        "difference": difference(scores, base),
        "learned": _learned(scores, base, counted["found"]),
    }


def _parts(values: Tensor, size: int) -> list[Tensor]:
    return [values[at : at + size] for at in range(0, len(values), size)]


def _learned(scores: list[float], base: list[float], found: str) -> str:
    """Say what images show beyond a guess; of a single one no interval speaks, only its sign."""
    _, low, _ = interval(scores, base)
    if low > 0:
        return "pixels"
    hits, count = map(int, found.split(" of "))
    return "identity" if 2 * hits >= count else "nothing"


def mode_leak(model: nn.Module, images: Tensor, labels: Tensor, mode: Mode) -> GradientLeak:
    """Return the gradient that a client sends whose batch norm is in a mode.

    Args:
        model: as the server sent it; it is left as it is.
        images: (B, C, H, W).
        labels: (B, K).
        mode: the client's.
    """
    local = copy.deepcopy(model).train(mode == "train")
    gradients = gradients_of(local, images, labels)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    return GradientLeak(model, gradients, len(images), shape, mode=mode)


@functools.cache
def network_of(name: str, seed: int, *, is_trained: bool) -> tuple[nn.Module, float | None]:
    """Return a network in eval mode, and its accuracy if it is trained."""
    data = dataset(SOURCE)
    model = untrained(name, data, classes=CLASSES, seed=seed, init=INIT.get(name))
    if not is_trained:
        return model, None
    take_steps(
        model.train(),
        data,
        STEPS,
        batch=TRAINING_BATCH,
        classes=CLASSES,
        learning_rate=RATES.get(name, 1e-3),
        draws=numpy_generator(seed, "training", name),
    )
    model.eval()
    return model, accuracy(model, data)
