"""How much of the class mass of batches and multi-step updates attacks recover, beside chance.

Every client draws its class shares from Dirichlet(0.5), so that equal shares are no good guess, and
its images from the training images. `chance` guesses the classes' shares among the test images.
Two attackers share each table: one without any data, and one with 20 test images of each class
(`llg+` and `label-mass+`).
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from attacks import LABEL_ATTACKS, GradientLeak, LabelAttack
from attacks.counts.head_gradient import Auxiliary
from fl_sim.bench.training import trained
from fl_sim.bench.victims import augment, dataset, initial_weights, untrained
from fl_sim.data import Dataset
from fl_sim.leakage.judge import instances_recovered, total_variation
from fl_sim.seeds import numpy_generator, torch_generator
from fl_sim.testing import gradients_of

TITLE = (
    "Label mass of batches and updates: total variation (TV, lower is better) and instances "
    "recovered (IRec)"
)
NOTES = (
    "“chance” knows the class shares of the server's test data, and B. “+” has 20 labelled test "
    "images of each class. “beaten by” names the baselines that do better than ours, and than "
    "chance.",
    initial_weights("lenet", "resnet18"),
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONCENTRATION = 0.5
"""Of the Dirichlet distribution of a client's class shares."""
KNOWN_IMAGES = 20
"""Auxiliary images of each class."""


@dataclass(frozen=True)
class Setting:
    """One cell of the table; steps are SGD steps at `lr`, one step is a gradient."""

    network: str
    data: str
    is_trained: bool
    bias: bool
    augmentation: str
    batch: int
    steps: int
    lr: float
    trials: int


def settings(*, quick: bool) -> list[Setting]:
    """Return the cells; a quick run keeps a few of the cheap ones."""
    lenet, resnet = ("lenet", "mnist-5k"), ("resnet18", "mnist-5k")
    if quick:
        sizes = [(batch, steps) for batch in (8, 32) for steps in (1, 4)]
        return [Setting(*lenet, False, True, "hard", *size, 0.01, 2) for size in sizes]
    one_step = [(batch, 1) for batch in (8, 16, 32, 64, 128, 256)]
    several = [(8, 5), (32, 5), (64, 5), (8, 20)]
    few = [(8, 1), (64, 1), (256, 1)]
    parts: list[tuple[tuple[str, str], str, bool, list[tuple[int, int]], int]] = [
        (lenet, "hard", True, one_step, 20),
        (lenet, "hard", False, one_step, 20),
        (lenet, "hard", True, several, 10),
        (lenet, "hard", False, several, 10),
        (lenet, "label-smoothing", True, few, 20),
        (lenet, "mixup", True, few, 20),
        (resnet, "hard", True, few, 3),
        (resnet, "hard", True, [(8, 4)], 2),
    ]
    found = [
        Setting(*which, is_trained, bias, augmentation, *size, 0.01, trials)
        for is_trained in (False, True)
        for which, augmentation, bias, sizes, trials in parts
        for size in sizes
    ]
    photographs = ("lenet", "photo-places", False, True, "hard")
    return found + [Setting(*photographs, *size, 0.01, 10) for size in few]


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure every setting; yield one row for each attack, with means over the trials.

    A column is "–" where the attack doesn't apply.

    Args:
        quick: a few cheap settings only.
        seed: of weights and draws.
    """
    for setting in settings(quick=quick):
        data = dataset(setting.data)
        if setting.is_trained:
            model, accuracy = trained(
                setting.network, setting.data, "hard", bias=setting.bias, seed=seed
            )
        else:
            model = untrained(setting.network, data, bias=setting.bias, seed=seed)
            accuracy = None
        found = list(_measure(setting, data, model, accuracy, seed))
        yield from (row | {"beaten by": _better(row, found)} for row in found)


def _better(row: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    """Name the baselines with a smaller TV than one of ours; those with images only beside ours."""
    if row["attack"] not in ("label-mass", "label-mass+"):
        return ""
    has_images = row["attack"].endswith("+")
    rivals = [r for r in found if not r["attack"].startswith("label-mass") and r["TV"] != "–"]
    better = [r["attack"] for r in rivals if r["TV"] < min(row["TV"], row["chance TV"])]
    return ", ".join(name for name in better if has_images or name != "llg+") or "none"


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw TV against B by attack, for LeNet with a bias and hard labels, one step."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 4), layout="constrained")
    axes = drawing.subplots(1, 2, sharey=True)
    for axis, is_trained in zip(axes, ("no", "yes"), strict=True):
        curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for row in rows:
            cell = (row["network"], row["trained"], row["bias"], row["augmentation"], row["steps"])
            is_drawn = cell[0] == "lenet" and row["data"] == "mnist-5k"
            if is_drawn and cell[1:] == (is_trained, "yes", "hard", 1) and row["TV"] != "–":
                curves[row["attack"]].append((row["batch"], row["TV"]))
                if row["attack"] == "label-mass":
                    curves["chance"].append((row["batch"], row["chance TV"]))
        for name, points in curves.items():
            is_ours = name.startswith("label-mass")
            style = ":" if name == "chance" else "-"
            x, y = zip(*points, strict=True)
            axis.plot(x, y, style, marker=".", label=name, linewidth=2 if is_ours else 1)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("examples in the batch")
        axis.set_title("trained network" if is_trained == "yes" else "untrained network")
    axes[0].set_ylabel("total variation distance")
    axes[0].set_ylim(0, None)
    axes[0].legend()
    return drawing


def _measure(
    setting: Setting, data: Dataset, model: nn.Module, accuracy: float | None, seed: int
) -> Iterator[dict[str, object]]:
    chance = torch.bincount(data.test_labels, minlength=data.num_classes).double()
    examples = setting.batch * setting.steps
    scores: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    guesses = []
    attacks = _attacks(data)
    for trial in range(setting.trials):
        draws = numpy_generator(seed, "label mass", repr(setting), trial)
        batches = _batches(setting, data, draws)
        leak = _leak(model, batches, setting.lr)
        true = torch.stack([labels.double().sum(dim=0) for _, labels in batches]).sum(dim=0)
        guesses.append((total_variation(chance, true), instances_recovered(chance, true, examples)))
        for name, attack in attacks.items():
            started = time.perf_counter()
            mass = attack(leak, generator=torch_generator(seed, "label mass", trial)).mass
            seconds = time.perf_counter() - started
            if mass is not None:
                distance = total_variation(mass, true)
                scores[name].append((distance, instances_recovered(mass, true, examples), seconds))
    for name in attacks:
        means = [fmean(column) for column in zip(*scores[name], strict=True)]
        yield {
            "network": setting.network,
            "data": setting.data,
            "trained": "yes" if setting.is_trained else "no",
            "accuracy": "–" if accuracy is None else round(accuracy, 3),
            "bias": "yes" if setting.bias else "no",
            "augmentation": setting.augmentation,
            "batch": setting.batch,
            "steps": setting.steps,
            "attack": name,
            "TV": round(means[0], 3) if means else "–",
            "IRec": round(means[1], 3) if means else "–",
            "chance TV": round(fmean(guess[0] for guess in guesses), 3),
            "chance IRec": round(fmean(guess[1] for guess in guesses), 3),
            "seconds": round(means[2], 4) if means else "–",
            "trials": setting.trials,
        }


def _attacks(data: Dataset) -> dict[str, LabelAttack]:
    chosen = [
        torch.nonzero(data.test_labels == k)[:KNOWN_IMAGES, 0] for k in range(data.num_classes)
    ]
    indices = torch.cat(chosen)
    known = Auxiliary(data.test_images[indices], data.test_labels[indices])
    build = LABEL_ATTACKS.build
    return {
        "gradinversion-labels": build("gradinversion-labels"),
        "llg": build("llg"),
        "llg*": build("llg", variant="llg*"),
        "ilrg": build("ilrg"),
        "label-mass": build("label-mass"),
        "llg+": build("llg", variant="llg+", auxiliary=known),
        "label-mass+": build("label-mass", auxiliary=known),
    }


def _batches(
    setting: Setting, data: Dataset, draws: np.random.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Draw the steps' images and labels, from one client's class shares."""
    shares = draws.dirichlet(np.full(data.num_classes, CONCENTRATION))
    members = [np.flatnonzero(data.labels.numpy() == k) for k in range(data.num_classes)]
    found = []
    for _ in range(setting.steps):
        classes = draws.choice(data.num_classes, 2 * setting.batch, p=shares)
        indices = torch.from_numpy(np.array([draws.choice(members[k]) for k in classes]))
        hard = one_hot(data.labels[indices], data.num_classes).double()
        found.append(augment(data.images[indices], hard, setting.augmentation, draws))
    return found


def _leak(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], lr: float) -> GradientLeak:
    """Return a gradient for one step, and what float32 weights tell after several.

    One step needs the last layer's gradient only, which spares the network's backward pass.
    """
    names = [name for name, _ in model.named_parameters()]
    moved = copy.deepcopy(model)
    weights = list(moved.parameters())
    is_one = len(batches) == 1
    head = [module for module in moved.modules() if isinstance(module, nn.Linear)][-1]
    if is_one:
        moved.requires_grad_(False)
        head.requires_grad_(True)
    gradients: dict[str, Tensor] = {}
    for images, labels in batches:
        gradients = gradients_of(moved, images, labels)
        if is_one:
            break
        with torch.no_grad():
            for name, weight in moved.named_parameters():
                weight.sub_(lr * gradients[name])
    if not is_one:
        pairs = zip(names, model.parameters(), weights, strict=True)
        gradients = {
            name: (old.detach().double() - new.detach().double()) / lr for name, old, new in pairs
        }
    images = batches[0][0]
    return GradientLeak(
        model,
        gradients,
        len(images),
        (images.shape[1], images.shape[2], images.shape[3]),
        local_steps=len(batches),
        lr=None if is_one else lr,
        update_dtype=None if is_one else torch.float32,
    )
