"""Epochs of mini-batches whose order nobody tells: each has images of its own, tied as sets."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from attacks import ExampleLabel, GradientLeak, LabelRecovery, Status
from attacks.images.dlg import DLG
from attacks.images.inverting_gradients import InvertingGradients
from attacks.matching.answer import spread_of_copies, write_answer
from attacks.matching.attack import GradientMatching, Labels
from attacks.matching.determined import evidence_for
from attacks.matching.evaluation import Given, Problem
from attacks.matching.models import epochs_apart, is_order_guessed, model_of
from attacks.matching.objectives import EpochAgreement, Seen, SquaredDistance
from attacks.matching.unknowns import Candidate, Unknowns
from attacks.training import SGD
from attacks.victim.differentiable import DifferentiableVictim
from fl_sim.testing.leaks import build_seeded, gradients_of, leak_of_steps

SHAPE = (1, 4, 4)
CLASSES = 4
ORDERS = ((0, 1), (2, 3), (3, 0), (2, 1))
"""Two epochs over four examples."""


Batches = tuple[tuple[int, ...], ...]


def images_and_labels(seed: int = 0, count: int = 4) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    images = torch.rand(count, *SHAPE, generator=draws, dtype=torch.float64)
    labels = 0.9 * torch.eye(CLASSES, dtype=torch.float64)[:count] + 0.1 / CLASSES
    return images, labels


def trained(orders: Batches = ORDERS, *, lr: float = 0.5, seed: int = 0) -> GradientLeak:
    """Return what a client sends that tells neither order."""
    start, local = (
        build_seeded(
            lambda: nn.Sequential(
                nn.Flatten(), nn.Linear(16, 40), nn.Sigmoid(), nn.Linear(40, CLASSES)
            ),
            seed=seed,
        ).double()
        for _ in range(2)
    )
    examples = 1 + max(map(max, orders))
    images, labels = images_and_labels(seed, examples)
    optimizer = torch.optim.SGD(local.parameters(), lr=lr)
    for chosen in orders:
        slopes = gradients_of(local, images[list(chosen)], labels[list(chosen)])
        for name, slope in slopes.items():
            local.get_parameter(name).grad = slope
        optimizer.step()
    return leak_of_steps(
        start, local, SGD(lr), len(orders), batch_size=len(orders[0]), input_shape=SHAPE,
        examples=examples, schedule="epochs",
    )  # fmt: skip


def known(labels: Tensor) -> LabelRecovery:
    return LabelRecovery.of([ExampleLabel(Status.RECOVERED, label=one) for one in labels])


def rms(found: Tensor, images: Tensor) -> Tensor:
    """Return the root mean square errors (N,), well paired."""
    squares = (found[:, None] - images).square().mean(dim=(-3, -2, -1))
    return squares[linear_sum_assignment(squares.numpy())].sqrt()


@pytest.mark.parametrize(
    ("told", "is_guessed", "copies"),
    [
        ({}, True, 2),
        ({"schedule": ORDERS}, False, 1),
        ({"schedule": "steps"}, True, 1),
        ({"schedule": None}, True, 1),
        ({"schedule": "full-batch", "batch_size": 4}, False, 1),
        ({"batch_size": 4}, False, 1),
        ({"local_steps": 2}, True, 1),
        ({"local_steps": 4, "batch_size": 3}, True, 2),
        ({"local_steps": 1, "schedule": None, "examples": 2}, False, 1),
    ],
    ids=str,
)
def test_each_epoch_whose_order_is_not_told_has_images_of_its_own(
    told: dict[str, Any], is_guessed: bool, copies: int
) -> None:
    leak = dataclasses.replace(trained(), **told)
    assert (is_order_guessed(leak), epochs_apart(leak)) == (is_guessed, copies)


def test_the_clients_training_is_among_what_is_searched() -> None:
    """With each epoch's images in that epoch's own order, the model sends what was sent."""
    leak = trained()
    images, labels = images_and_labels()
    order = [example for batch in ORDERS for example in batch]
    victim = DifferentiableVictim.of(leak)
    model = model_of(leak, 4, "unrolled")
    sent, _ = model(victim, Candidate(images[order], labels[order], None), ())
    for name, part in sent.items():
        torch.testing.assert_close(part, leak.gradients[name], rtol=1e-9, atol=1e-11)
    alike = [0, 1, 2, 3, 0, 1, 2, 3]
    sent, _ = model(victim, Candidate(images[alike], labels[alike], None), ())
    assert not all(torch.allclose(part, leak.gradients[n], rtol=1e-3) for n, part in sent.items())


def test_epochs_agree_in_any_order_and_not_with_another_image() -> None:
    images, labels = images_and_labels()
    agreement = EpochAgreement(2.0, 2)

    def penalty(second: Tensor) -> float:
        both = torch.cat([images, second])
        return float(agreement(Seen(Candidate(both, labels.repeat(2, 1), None), {}, both)))

    assert penalty(images[[2, 0, 3, 1]]) == pytest.approx(0, abs=1e-15)
    other = images.clone()
    other[0] += 0.4
    # Means are 0.1 apart, each 0.05 off their mean.
    assert penalty(other) == pytest.approx(2 * 0.05**2)


def test_an_answer_pairs_the_epochs_images_and_takes_their_mean() -> None:
    images, _ = images_and_labels()
    unknowns = Unknowns(4, SHAPE, CLASSES, epochs=2)
    row = torch.cat([images - 0.1, images[[2, 0, 3, 1]] + 0.1]).reshape(-1)
    assert len(row) == unknowns.size
    found = write_answer(unknowns, row[None], Status.NOT_CONVERGED, "as it was", 1)
    assert found.images is not None
    torch.testing.assert_close(found.images, images)
    assert spread_of_copies(unknowns, row) == pytest.approx(0.1)
    assert spread_of_copies(Unknowns(8, SHAPE, CLASSES), row) == 0


@pytest.mark.parametrize(
    "attack",
    [
        InvertingGradients(iterations=3),
        InvertingGradients(iterations=3, labels="free"),
        InvertingGradients(iterations=3, local="surrogate"),
        InvertingGradients(iterations=3, local="naive", restarts=2),
        DLG(iterations=3, restarts=1),
    ],
    ids=["given", "free", "surrogate", "naive", "dlg"],
)
def test_an_answer_has_an_image_for_each_example(attack: GradientMatching) -> None:
    leak = trained()
    _, labels = images_and_labels()
    found = attack(leak, known(labels), generator=torch.Generator().manual_seed(0))
    assert found.status is Status.NOT_CONVERGED
    assert found.images is not None
    assert found.images.shape == (4, *SHAPE)
    assert float(found.images.min()) >= 0
    assert float(found.images.max()) <= 1


def test_steps_that_draw_anew_are_searched_for_an_image_in_every_place() -> None:
    leak = dataclasses.replace(trained(), schedule="steps", examples=None)
    nothing = LabelRecovery(Status.NOT_APPLICABLE, "no label attack was asked", batch_size=2)
    attack = InvertingGradients(iterations=2)
    found = attack(leak, nothing, generator=torch.Generator().manual_seed(0))
    assert found.images is not None
    assert len(found.images) == 8


@pytest.mark.parametrize("error", [0.0, 1e-3])
def test_the_truth_in_each_epochs_own_order_would_be_vouched_for_and_nothing_near_it(
    error: float,
) -> None:
    orders = ((0,), (1,), (1,), (0,))
    leak = trained(orders)
    images, labels = images_and_labels(count=2)
    victim = DifferentiableVictim.of(leak)
    unknowns = Unknowns(2, SHAPE, CLASSES, has_labels=True, epochs=2)
    model = model_of(leak, 2, "unrolled")
    problem = Problem(victim, Given(victim.target), model, unknowns, SquaredDistance())
    order = [example for batch in orders for example in batch]
    pixels, logits = images[order].reshape(-1), labels[order].log().reshape(-1)
    pixels[-1] += error
    row = torch.cat([pixels, logits])
    found = evidence_for(problem, row, leak, torch.Generator().manual_seed(0))
    if error:
        assert "nothing vouches for them" in str(found.reason)
        return
    assert found.reason is None
    assert found.error is not None
    assert found.error < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["given", "free"])
def test_nothing_false_is_claimed_of_epochs(labels: Labels) -> None:
    for seed in range(3):
        leak = trained(((0,), (1,), (1,), (0,)), lr=1.0, seed=seed)
        images, own = images_and_labels(seed, 2)
        attack = DLG(iterations=250, restarts=2, labels=labels)
        found = attack(leak, known(own), generator=torch.Generator().manual_seed(seed))
        assert found.images is not None
        if found.status is Status.RECOVERED:
            assert float(rms(found.images, images).max()) < 10 ** (-50 / 20)
