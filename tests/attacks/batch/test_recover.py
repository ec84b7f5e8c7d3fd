"""`soft-label` on batches: every example's label and feature, or the reason why not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from attacks import LabelRecovery, Status
from attacks.labels.soft_label import SoftLabelRecovery
from fl_sim.testing import build_seeded, check_no_claim, facts_of, gradients_of

KINDS = ("hard", "label-smoothing", "mixup", "mixup+label-smoothing")
Build = Callable[..., Any]
CLASSES, WIDTH = 40, 160


def recover(leak: Any, seed: int = 0) -> LabelRecovery:
    return SoftLabelRecovery()(leak, generator=torch.Generator().manual_seed(seed))


def mixed_labels(make_label: Build, size: int, seed: int = 0, classes: int = CLASSES) -> Tensor:
    """Draw labels of all kinds in turn."""
    draws = np.random.default_rng(seed)
    return torch.cat([make_label(classes, KINDS[b % 4], draws) for b in range(size)])


def pairing(recovery: LabelRecovery, victim: Any) -> tuple[list[int], list[int], Tensor, Tensor]:
    """Pair the recovered rows with examples; return both, and the errors of labels and features."""
    assert recovery.labels is not None
    assert recovery.features is not None
    rows = [row for row, s in enumerate(recovery.statuses) if s is Status.RECOVERED]
    labels = (recovery.labels[rows][:, None] - victim.label).abs().amax(dim=-1)
    features = (recovery.features[rows][:, None] - victim.feature).norm(dim=-1)
    features = features / victim.feature.norm(dim=-1)
    mine, theirs = linear_sum_assignment((labels + features).numpy())
    return [rows[i] for i in mine], list(theirs), labels[mine, theirs], features[mine, theirs]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("sent_as", ["float64", "float32", "update"])
@pytest.mark.parametrize("bias", [False, True])
def test_recovers_every_example_whatever_its_augmentation(
    bias: bool, sent_as: str, told: bool, make_model: Build, make_label: Build, make_victim: Build
) -> None:
    model = make_model(CLASSES, bias=bias, hidden=WIDTH)
    victim = make_victim(model, mixed_labels(make_label, 8), sent_as=sent_as)
    leak = dataclasses.replace(victim.leak, batch_size=8 if told else None)
    recovery = recover(leak)
    assert recovery.status is Status.RECOVERED, recovery.reason
    assert recovery.batch_size == 8
    rows, examples, labels, features = pairing(recovery, victim)
    assert len(rows) == 8
    assert labels.max() < 1e-4  # measured: 1e-15, 2e-7, 2e-6
    assert features.max() < 1e-3  # measured: 1e-14, 1e-6, 5e-5
    for row, example in zip(rows, examples, strict=True):
        found = recovery.examples[row].augmentation
        assert found is not None
        assert found.type == KINDS[example % 4]


def test_small_logits_and_a_bias(make_label: Build, make_victim: Build) -> None:
    """PyTorch's own initialisation on raw pixels: only the bias fixes the scale."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(144, 256), nn.ReLU(), nn.Linear(256, CLASSES)]
    victim = make_victim(nn.Sequential(*layers), mixed_labels(make_label, 8), sent_as="float32")
    assert victim.feature.mean() < 0.2
    recovery = recover(victim.leak)
    assert recovery.status is Status.RECOVERED, recovery.reason
    assert pairing(recovery, victim)[2].max() < 1e-4  # measured: 1e-6


def test_one_class_only(make_model: Build, make_victim: Build) -> None:
    """All examples of one class, as from a client that has no other."""
    smoothing = torch.linspace(0.05, 0.4, 8, dtype=torch.float64)[:, None]
    label = torch.zeros(8, CLASSES, dtype=torch.float64)
    label[:, 3] = 1
    label = (1 - smoothing) * label + smoothing / CLASSES
    victim = make_victim(make_model(CLASSES, hidden=WIDTH), label, sent_as="float32")
    recovery = recover(victim.leak)
    assert recovery.status is Status.RECOVERED, recovery.reason
    assert pairing(recovery, victim)[2].max() < 1e-4  # measured: 1e-6


def test_few_classes_rest_on_the_other_rays(
    make_model: Build, make_label: Build, make_victim: Build
) -> None:
    """With K − B = 4 the column space alone tests no mixed label; all rays together do."""
    label = mixed_labels(make_label, 12, classes=16)
    victim = make_victim(make_model(16, hidden=256), label, sent_as="float64")
    recovery = recover(victim.leak)
    assert recovery.status is Status.RECOVERED, recovery.reason
    assert pairing(recovery, victim)[2].max() < 1e-6  # measured: 1e-12


def test_knowledge_is_a_constraint(
    make_model: Build, make_label: Build, make_victim: Build
) -> None:
    draws = np.random.default_rng(4)
    label = torch.cat([make_label(CLASSES, "mixup", draws) for _ in range(8)])
    label = 0.9 * label + 0.1 / CLASSES
    model = make_model(CLASSES, hidden=WIDTH)
    knowledge = facts_of("mixup+label-smoothing", 0.1)
    victim = make_victim(model, label, sent_as="float32", knowledge=knowledge)
    recovery = recover(victim.leak)
    assert recovery.status is Status.RECOVERED, recovery.reason
    augmentations = [example.augmentation for example in recovery.examples]
    assert all(found.smoothing == pytest.approx(0.1) for found in augmentations if found)
    wrong = dataclasses.replace(victim.leak, knowledge=facts_of("hard"))
    assert Status.RECOVERED not in recover(wrong).statuses


def test_a_clipped_gradient_tells_its_factor(
    make_model: Build, make_label: Build, make_victim: Build
) -> None:
    victim = make_victim(make_model(CLASSES, hidden=WIDTH), mixed_labels(make_label, 8), factor=0.3)
    recovery = recover(victim.leak)
    assert recovery.gradient_scale == pytest.approx(0.3, rel=1e-3)  # measured: 1e-5
    assert pairing(recovery, victim)[2].max() < 1e-3


def test_equal_examples_are_missed_one_by_one(
    make_model: Build, make_label: Build, make_victim: Build
) -> None:
    """Two examples with one feature are one ray; no label explains it, and the others are found."""
    model = make_model(CLASSES, hidden=WIDTH).double()
    label = mixed_labels(make_label, 8)
    victim = make_victim(model, label, sent_as="float64")
    image = victim.image.clone()
    image[7] = image[6]
    gradients = gradients_of(model, image, label)
    leak = dataclasses.replace(victim.leak, gradients=gradients)
    recovery = recover(leak)
    assert recovery.statuses.count(Status.RECOVERED) == 6
    assert recovery.status is not Status.RECOVERED
    assert len(recovery.statuses) == 8
    assert "6 of 8 examples" in (recovery.reason or "")
    truth = dataclasses.replace(victim, feature=model[:-1](image).detach())
    assert pairing(recovery, truth)[2].max() < 1e-6


def test_batch_norm_in_train_mode_changes_nothing(make_label: Build, make_victim: Build) -> None:
    """The last layer's gradient holds the features as they were, whatever made them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden = [nn.Linear(144, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU()]
        model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(WIDTH, CLASSES, bias=False))
    model.train()
    victim = make_victim(model, mixed_labels(make_label, 8), sent_as="float64", mode="train")
    recovery = recover(victim.leak)
    assert recovery.status is Status.RECOVERED, recovery.reason
    assert pairing(recovery, victim)[2].max() < 1e-6


def test_is_pure_and_seeded(make_model: Build, make_label: Build, make_victim: Build) -> None:
    victim = make_victim(make_model(CLASSES, hidden=WIDTH), mixed_labels(make_label, 8))
    before = {name: g.clone() for name, g in victim.leak.gradients.items()}
    weights = {name: w.clone() for name, w in victim.leak.model.state_dict().items()}
    state = torch.random.get_rng_state()
    one, two = recover(victim.leak), recover(victim.leak)
    assert one.labels is not None
    assert two.labels is not None
    assert torch.equal(one.labels, two.labels)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(g, before[name]) for name, g in victim.leak.gradients.items())
    after = victim.leak.model.state_dict()
    assert all(torch.equal(after[name], w) for name, w in weights.items())


def tanh_network(make_model: Build) -> nn.Module:
    model: nn.Module = make_model(CLASSES, activation=nn.Tanh, hidden=WIDTH)
    return model


def sigmoid_network(make_model: Build) -> nn.Module:
    model: nn.Module = make_model(CLASSES, activation=nn.Sigmoid, hidden=WIDTH)
    return model


def shallow_network(make_model: Build) -> nn.Module:
    """12 classes leave the last layer's gradient of 11 examples at most."""
    model: nn.Module = make_model(12, hidden=WIDTH)
    return model


def narrow_network(make_model: Build) -> nn.Module:
    """Nor have its hidden layers units enough for as many masks."""
    return build_seeded(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 20), nn.ReLU(), nn.Linear(20, 12))
    )


@pytest.mark.parametrize(
    ("build", "size", "changes", "words"),
    [
        (tanh_network, 8, {}, "both signs"),
        (sigmoid_network, 8, {}, "dense"),
        (narrow_network, 12, {}, "12 classes"),
        (shallow_network, 8, {"local_steps": 3}, "3 local steps"),
        (shallow_network, 8, {"batch_size": 5}, "rank 8"),
    ],
)
def test_refuses_what_it_does_not_cover(
    build: Build,
    size: int,
    changes: dict[str, Any],
    words: str,
    make_model: Build,
    make_label: Build,
    make_victim: Build,
) -> None:
    model = build(make_model)
    classes = model[-1].out_features
    label = mixed_labels(make_label, size, classes=classes)
    victim = make_victim(model, label, sent_as="float64")
    recovery = recover(dataclasses.replace(victim.leak, **changes))
    assert recovery.status is Status.NOT_APPLICABLE
    assert words in (recovery.reason or "")


@pytest.mark.parametrize("told", [True, False])
def test_noise_is_refused(
    told: bool, make_model: Build, make_label: Build, make_victim: Build
) -> None:
    """Noise as large as the gradient's entries hides all but a few directions."""
    label = mixed_labels(make_label, 8)
    victim = make_victim(make_model(CLASSES, hidden=WIDTH), label, noise_std=1e-3)
    recovery = recover(dataclasses.replace(victim.leak, batch_size=8 if told else None))
    assert recovery.status is Status.NOT_APPLICABLE
    check_no_claim(recovery, "uncertain by" if told else "no gap")


def test_few_classes_take_hidden_layers(
    make_model: Build, make_label: Build, make_victim: Build
) -> None:
    """Six classes leave four examples' labels hardly a test in the last layer alone."""
    for seed in range(5):
        label = mixed_labels(make_label, 4, seed, classes=6)
        victim = make_victim(make_model(6, seed=seed), label, sent_as="float32", seed=seed)
        recovery = recover(victim.leak)
        rows = recovery.statuses.count(Status.RECOVERED)
        assert rows >= 3, recovery.reason  # measured: at most 1 by rays, 3 or 4 by masks
        assert pairing(recovery, victim)[2].max() < 1e-4
