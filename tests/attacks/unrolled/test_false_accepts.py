"""What is told wrongly, or trained otherwise: whatever is claimed all the same is right."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from attacks import Status
from attacks.images.analytic import AnalyticInversion
from attacks.labels.soft_label import SoftLabelRecovery
from attacks.training import SGD
from fl_sim.testing.leaks import leak_of_steps

Train = Callable[..., Any]
OTHERWISE = (
    "steps",
    "lr",
    "momentum",
    "weight decay",
    "examples",
    "batch size",
    "full batches",
    "a batch left out",
    "dropout",
    "Adam",
    "weights",
    "clipping",
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(len(OTHERWISE)))
def test_nothing_false_is_claimed(seed: int, train: Train) -> None:
    assert wrong_claims(*drawn(seed, train)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_claimed_of_what_rounding_buries(seed: int, train: Train) -> None:
    draws = np.random.default_rng(seed)
    victim = train(
        int(draws.integers(1, 4)),
        int(draws.integers(2, 4)),
        lr=float(10 ** draws.uniform(-8, -5)),
        widths=(64,),
        bias=bool(seed % 2),
        kind=str(draws.choice(["hard", "label-smoothing", "soft"])),
        seed=seed,
    )
    assert wrong_claims(victim.leak, victim, victim.labels) == 0


def drawn(seed: int, train: Train) -> tuple[Any, Any, Tensor]:
    """Draw a client, a leak that is told wrongly of it or trained otherwise, and right labels."""
    otherwise = OTHERWISE[seed % len(OTHERWISE)]
    draws = np.random.default_rng((seed, 7))
    size, count, epochs = (int(draws.integers(*span)) for span in ((1, 4), (2, 4), (1, 3)))
    examples = size * count - int(draws.integers(min(size, 2)))
    orders = [draws.permutation(examples).tolist() for _ in range(epochs)]
    batches = [order[at : at + size] for order in orders for at in range(0, examples, size)]
    told: dict[str, Any] = {"batch_size": size, "examples": examples, "schedule": "epochs"}
    if draws.random() < 0.4:  # full batches
        batches = [list(range(examples))] * int(draws.integers(2, 7))
        told |= {"batch_size": examples, "schedule": "full-batch"}
    steps, lr = len(batches), float(10 ** draws.uniform(-2, -0.8))
    sgd: dict[str, Any] = {"lr": lr}
    training: dict[str, Any] = {"lr": lr}
    factor = float(draws.choice([0.5, 0.9, 0.99, 0.999, 1.0001, 1.001, 1.01, 1.1, 2.0]))
    if otherwise == "steps":
        steps += 1 if steps < 3 else int(draws.choice([-1, 1]))
        told["schedule"] = "full-batch" if draws.random() < 0.5 else None
        told["batch_size"] = examples
    elif otherwise == "lr":
        sgd["lr"] *= factor
    elif otherwise == "momentum":
        (sgd if draws.random() < 0.5 else training)["momentum"] = float(draws.uniform(0.01, 0.9))
    elif otherwise == "weight decay":
        decay = float(10 ** draws.uniform(-4, -1))
        (sgd if draws.random() < 0.5 else training)["weight_decay"] = decay
    elif otherwise == "examples":
        told = {"batch_size": None, "examples": examples + int(draws.choice([-1, 1])) or 2}
    elif otherwise == "batch size":
        told |= {"batch_size": max(1, examples - 1), "schedule": "steps"}
    elif otherwise == "full batches":
        told |= {"batch_size": examples, "schedule": "full-batch"}
        if training == sgd and batches[0] == batches[-1]:
            batches = [batch[step % 2 :] or batch for step, batch in enumerate(batches)]
    elif otherwise == "a batch left out":
        batches.pop(int(draws.integers(len(batches))))
        batches = batches or [order[:1] for order in orders]
    elif otherwise == "dropout":
        training["drop"] = float(draws.uniform(0.02, 0.5))
    elif otherwise == "Adam":
        training |= {"optimizer": torch.optim.Adam, "lr": float(10 ** draws.uniform(-4, -2))}
    used = sorted({example for batch in batches for example in batch})
    victim = train(
        len(used),
        len(batches),
        batches=[[used.index(example) for example in batch] for batch in batches],
        bias=bool(draws.random() < 0.5),
        widths=(int(draws.choice([32, 64, 128])),) * int(draws.choice([1, 1, 1, 2])),
        kind=str(draws.choice(["hard", "label-smoothing", "mixup", "soft"])),
        seed=seed,
        **training,
    )
    model, local = victim.leak.model, victim.local
    with torch.no_grad():
        if otherwise == "weights":
            model[2].weight.mul_(1 + abs(1 - factor) / 10)
        elif otherwise == "clipping":
            for start, end in zip(model.parameters(), local.parameters(), strict=True):
                end.sub_(abs(1 - factor) * (end - start))
    leak = leak_of_steps(model, local, SGD(**sgd), steps, input_shape=(1, 28, 28), **told)
    right = victim.labels
    if otherwise == "lr" and len(used) == sum(map(len, batches)):
        own = [[used.index(example) for example in batch] for batch in batches]
        right = torch.cat([right, labels_at(lr / sgd["lr"], victim, own, lr)])
    return leak, victim, right


def labels_at(ratio: float, victim: Any, batches: list[list[int]], lr: float) -> Tensor:
    """Return the labels that leave the same update at another learning rate, `p − ratio (p − y)`.

    There are such where every example is taken once: nothing tells them from the client's.
    """
    model, labels = copy.deepcopy(victim.leak.model).double(), victim.labels.clone()
    for batch in batches:
        logits = model(victim.images[batch])
        chances = logits.detach().softmax(dim=1)
        labels[batch] = chances - ratio * (chances - victim.labels[batch])
        loss = cross_entropy(logits, victim.labels[batch])
        slopes = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for weight, slope in zip(model.parameters(), slopes, strict=True):
                weight.sub_(lr * slope)
    return labels


def wrong_claims(leak: Any, victim: Any, right: Tensor) -> int:
    """Count the labels and images that are claimed, and near none of those that are right."""
    labels = SoftLabelRecovery()(leak, generator=torch.Generator().manual_seed(0))
    images = AnalyticInversion()(leak, labels, generator=torch.Generator().manual_seed(0))
    false = 0
    for answer in labels.examples:
        if answer.status is Status.RECOVERED:
            false += bool((answer.label - right).abs().amax(dim=1).min() > 1e-2)
    for found in images.examples:
        if found.status is Status.RECOVERED:
            off = (found.image - victim.images).square().flatten(1).mean(dim=1)
            false += bool(off.min() > 1e-5)  # 50 dB
    return false
