"""Rounds of which a defense perturbs some alone: which those are, and what the others give."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from attacks import GradientLeak, Normalization, Status
from attacks.facts import Decaying, Fact, GaussianMechanism, Mixup
from attacks.images.analytic import AnalyticInversion
from attacks.labels.soft_label import SoftLabelRecovery
from attacks.rounds.unperturbed import is_unperturbed, taken_rounds, without_perturbed
from defenses.base import ClientStep, Place
from defenses.outpost import Outpost
from fl_sim.testing import build_seeded

LR, SHAPE = 0.1, (1, 8, 8)
MILD = Outpost(0.0, sparsity=0.5, noise=1e-3)


def leaks_of(
    perturbed: tuple[bool, ...],
    defense: Outpost = MILD,
    *,
    examples: int = 4,
    knowledge: tuple[Fact, ...] = (Decaying(0.0),),
    noise: float = 0.0,
    seed: int = 1,
) -> tuple[GradientLeak, Tensor, Tensor]:
    """Return the last round's leak with the earlier ones, images and labels, in float32."""
    model = build_seeded(
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 96),
            nn.ReLU(),
            nn.Linear(96, 96),
            nn.ReLU(),
            nn.Linear(96, 5),
        )
    )
    draws = torch.Generator().manual_seed(seed)
    images = torch.rand(examples, *SHAPE, generator=draws)
    labels = one_hot(torch.randint(5, (examples,), generator=draws), 5).float()
    leaks = []
    for is_perturbed in perturbed:
        parameters = dict(model.named_parameters())
        loss = cross_entropy(model(images), labels)
        gradients = dict(
            zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)
        )
        if is_perturbed:
            step = ClientStep(images, labels, model, loss, None, Place())
            sent = defense.on_gradient(step, gradients, draws)
            assert isinstance(sent, dict)
            gradients = sent
        before = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in parameters.items():
                own = noise * torch.randn(parameter.shape, generator=draws)
                parameter.sub_(LR * gradients[name] + own)
        received = dict(before.named_parameters())
        update = {n: (received[n] - p).detach().double() / LR for n, p in parameters.items()}
        leaks.append(
            GradientLeak(
                before,
                update,
                examples,
                SHAPE,
                lr=LR,
                update_dtype=torch.float32,
                examples=examples,
                knowledge=knowledge,
                normalization=Normalization.of_range(0, 1),
            )
        )
    *earlier, last = leaks
    return dataclasses.replace(last, earlier=tuple(earlier)), images, labels


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "defense",
    [MILD, Outpost(0.0), Outpost(0.0, sparsity=0.0, noise=1e-3), Outpost(0.0, 0.9, 0.0)],
    ids=["mild", "usual", "noise-alone", "pruning-alone"],
)
def test_an_update_shows_whether_it_was_perturbed(defense: Outpost, seed: int) -> None:
    leak, _, _ = leaks_of((False, True), defense, seed=seed)
    assert leak.earlier is not None
    assert is_unperturbed(leak.earlier[0])
    assert not is_unperturbed(leak)


def test_what_does_not_tell_is_not_taken_for_unperturbed() -> None:
    leak, _, _ = leaks_of((False,))
    untold = dataclasses.replace(leak, batch_size=None, examples=None)
    assert not is_unperturbed(untold)
    wide, _, _ = leaks_of((False,), examples=70)  # more than pixels, and more than classes
    narrow = {n: g for n, g in wide.gradients.items() if not n.startswith("3.")}
    assert not is_unperturbed(dataclasses.replace(wide, gradients=narrow))


def test_the_round_that_went_unperturbed_gives_all() -> None:
    leak, images, labels = leaks_of((True, False, True, False, True))
    assert taken_rounds(leak) in ([1], [3])
    generator = torch.Generator().manual_seed(0)
    found = SoftLabelRecovery()(leak, generator=generator)
    assert found.status is Status.RECOVERED, found.reason
    shown = AnalyticInversion()(leak, found, generator=generator)
    assert shown.status is Status.RECOVERED, shown.reason
    assert found.labels is not None
    assert shown.images is not None
    off = (shown.images[:, None] - images).square().flatten(2).mean(dim=2)
    nearest = off.argmin(dim=1)
    assert sorted(nearest.tolist()) == list(range(len(images)))
    assert off.amin(dim=1).max() < 1e-8  # 80 dB
    assert (found.labels - labels[nearest]).abs().max() < 1e-3


def test_an_attacker_who_is_not_told_takes_all_rounds_and_claims_nothing() -> None:
    leak, _, _ = leaks_of((True, False, True), knowledge=())
    assert taken_rounds(leak) == [0, 1, 2]
    assert without_perturbed(leak) is leak
    found = SoftLabelRecovery()(leak, generator=torch.Generator())
    assert Status.RECOVERED not in (found.status, *found.statuses)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("defense", [MILD, Outpost(0.0)], ids=["mild", "usual"])
def test_nothing_is_claimed_where_every_round_was_perturbed(defense: Outpost, seed: int) -> None:
    leak, _, _ = leaks_of((True, True), defense, seed=seed)
    assert taken_rounds(leak) == [0, 1]
    generator = torch.Generator().manual_seed(0)
    found = SoftLabelRecovery()(leak, generator=generator)
    shown = AnalyticInversion()(leak, found, generator=generator)
    assert Status.RECOVERED not in (found.status, *found.statuses)
    assert Status.RECOVERED not in (shown.status, *shown.statuses)


def test_under_noise_that_is_told_all_unperturbed_rounds_are_taken() -> None:
    told = (Decaying(0.0), GaussianMechanism(None, 1e-5))
    leak, _, _ = leaks_of((False, True, False), Outpost(0.0), knowledge=told, noise=1e-5)
    assert taken_rounds(leak) == [0, 2]
    chosen = without_perturbed(leak)
    assert chosen.earlier is not None
    assert len(chosen.earlier) == 1


def test_of_mixes_that_are_drawn_anew_no_round_stands_for_another() -> None:
    leak, _, _ = leaks_of((True, False, True), knowledge=(Mixup(), Decaying(0.0)))
    assert taken_rounds(leak) == [0, 1, 2]
