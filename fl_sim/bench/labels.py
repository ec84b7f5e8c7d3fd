"""Label recovery from one example, by network, weights, K, bias, augmentation and attack.

The leak is the float32 gradient of the last layer, which is all that these attacks read. The
augmentation isn't told, but to `soft-label-pso`, which needs it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from attacks import LABEL_ATTACKS, GradientLeak, Status
from attacks.victim.network import Network
from fl_sim.bench.training import trained
from fl_sim.bench.victims import INITS, dataset, draw_batch, inits, untrained
from fl_sim.seeds import torch_generator
from fl_sim.testing import facts_of, gradients_of

TITLE = (
    "Soft labels from the float32 gradient of one example; the augmentation isn't told "
    "(ε ~ U(0, 0.5), mixing ~ Beta(1, 1))"
)
NOTES = (
    "“accepted” is what an attack takes for the answer: RECOVERED, or for `soft-label-pso` a loss "
    "below its threshold (it is told the augmentation, and never claims RECOVERED). “false” is "
    "accepted with an L∞ error of 1e-2 or more. “no answer” is NOT_IDENTIFIABLE or NOT_APPLICABLE. "
    "Milliseconds are of the whole attack, on one thread.",
    "Published (arXiv 2402.03124, stored outputs of its code): CIFAR-10, ResNet-18 untrained, "
    "smoothing 1000 of 1000 at 0.87 s each; LeNet trained, mixup 900 of 900 at 8.6 s each, each "
    "root accepted by comparison with the truth.",
    INITS,
)
DATA = {10: "mnist-5k", 100: "photo-places"}
"""The data set for each K."""
FORWARD_AT_ONCE = 100
GRADIENTS, SEARCHES = 500, 10
"""In a cell, of which so many are searched by `soft-label-pso`, too."""


@dataclass(frozen=True)
class Cell:
    """One setting.

    Args:
        network: a name in `fl_sim.MODELS`.
        init: how its weights are drawn, trained or not.
        classes: K, a key of `DATA`.
        is_trained: whether it was trained with the augmentation, to 90 % accuracy.
        bias: whether the last layer has one.
        augmentation: of the victims.
    """

    network: str
    init: str
    classes: int
    is_trained: bool
    bias: bool
    augmentation: str

    def model(self, seed: int) -> tuple[nn.Module, str]:
        """Return the network, and its state in words."""
        name = DATA[self.classes]
        if not self.is_trained:
            data = dataset(name)
            kept = untrained(self.network, data, bias=self.bias, seed=seed, init=self.init)
            return kept, "untrained"
        kind = self.augmentation
        model, accuracy = trained(
            self.network, name, kind, bias=self.bias, seed=seed, init=self.init
        )
        return model, f"trained, {accuracy:.0%}"


def cells(*, quick: bool) -> list[Cell]:
    """Return the grid; of ResNet-18, which takes minutes to train, only part of the trained one."""
    grid = [
        Cell(network, init, classes, is_trained, bias, augmentation)
        for network in (("fcn4", "lenet") if quick else ("fcn4", "lenet", "resnet18"))
        for init in inits(network)
        for classes in ((10,) if quick else (10, 100))
        for is_trained in (False, True)
        for bias in (False, True)
        for augmentation in ("label-smoothing", "mixup")
    ]
    long = [c for c in grid if c.network == "resnet18" and c.is_trained]
    return [c for c in grid if c not in long or (c.classes == 10 and not c.bias)]


def rows(*, quick: bool, seed: int) -> Iterator[dict[str, object]]:
    """Measure; one row for each cell and attack."""
    for cell in cells(quick=quick):
        number = 50 if quick else GRADIENTS
        model, state = cell.model(seed)
        leaks, labels = head_leaks(model, cell, number, seed)
        counts = {"soft-label": number, "soft-label-pso": 2 if quick else SEARCHES}
        if cell.bias:
            counts["bias-ratio"] = min(number, 200)
        for attack, count in counts.items():
            yield {
                "network": cell.network,
                "init": cell.init,
                "K": cell.classes,
                "state": state,
                "bias": "yes" if cell.bias else "no",
                "augmentation": cell.augmentation,
                "attack": attack,
                **_measure(attack, cell.augmentation, leaks[:count], labels, seed),
            }


def head_leaks(
    model: nn.Module, cell: Cell, number: int, seed: int
) -> tuple[list[GradientLeak], Tensor]:
    """Return leaks of single examples that hold the last layer's gradient only, and the labels."""
    data = dataset(DATA[cell.classes])
    images, labels = draw_batch(data, number, cell.augmentation, seed=seed)
    blank = GradientLeak(model, {}, batch_size=1, input_shape=data.input_shape)
    network = Network(blank)
    features = torch.cat([network.features(part) for part in torch.split(images, FORWARD_AT_ONCE)])
    head, prefix = network.head, network.head_name
    leaks = []
    for feature, label in zip(features, labels, strict=True):
        own = gradients_of(head, feature[None], label[None])
        gradients = {f"{prefix}.{name}": gradient for name, gradient in own.items()}
        leaks.append(dataclasses.replace(blank, gradients=gradients))
    return leaks, labels


def _measure(
    name: str, augmentation: str, leaks: Sequence[GradientLeak], labels: Tensor, seed: int
) -> dict[str, object]:
    """Run one attack on leaks, and count."""
    attack = LABEL_ATTACKS.build(name)
    errors, seconds, accepted, silent = [], [], [], 0
    for index, leak in enumerate(leaks):
        if name == "soft-label-pso":
            leak = dataclasses.replace(leak, knowledge=facts_of(augmentation))
        generator = torch_generator(seed, "bench labels", name, index)
        started = time.perf_counter()
        answer = attack(leak, generator=generator)
        seconds.append(time.perf_counter() - started)
        error = np.inf
        if answer.labels is not None:
            error = float((answer.labels[0] - labels[index]).abs().max())
        errors.append(error)
        if name == "soft-label-pso":
            residual = answer.examples[0].residual if answer.examples else None
            accepted.append(residual is not None and residual < 1)
        else:
            accepted.append(answer.status is Status.RECOVERED)
            silent += answer.status in (Status.NOT_IDENTIFIABLE, Status.NOT_APPLICABLE)
    found, taken = np.array(errors), np.array(accepted)
    return {
        "gradients": len(leaks),
        "L∞ < 1e-2": int((found < 1e-2).sum()),
        "L∞ < 1e-3": int((found < 1e-3).sum()),
        "accepted": int(taken.sum()),
        "false": int((taken & (found >= 1e-2)).sum()),
        "no answer": silent,
        "ms": f"{1e3 * np.median(seconds):.1f}",
        "95 % ms": f"{1e3 * np.quantile(seconds, 0.95):.1f}",
    }


def figure(found: Sequence[dict[str, Any]]) -> Figure:
    """Draw the share within 1e-3 against the median time, a point for each cell."""
    drawing = Figure(figsize=(5.5, 3.6), layout="constrained")
    axis = drawing.subplots()
    for number, attack in enumerate(dict.fromkeys(row["attack"] for row in found)):
        color = f"C{number}"
        for state, face in (("untrained", color), ("trained", "none")):
            some = [r for r in found if r["attack"] == attack and r["state"].startswith(state)]
            x = [float(r["ms"]) for r in some]
            y = [r["L∞ < 1e-3"] / r["gradients"] for r in some]
            axis.scatter(x, y, 22, facecolor=face, edgecolor=color, label=f"{attack}, {state}")
    axis.set_xscale("log")
    axis.set_xlabel("milliseconds, median")
    axis.set_ylabel("share with L∞ < 1e-3")
    axis.legend(fontsize=7)
    return drawing
