"""What is taken to be sent after several steps, and the objective as it is played back."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, unfold

from attacks import ExampleLabel, GradientLeak, LabelRecovery, NotApplicable, Status
from attacks.images.auto import Auto
from attacks.images.gradinversion import GradInversion
from attacks.images.inverting_gradients import InvertingGradients
from attacks.matching.evaluation import Given, Problem, evaluation_of, traced
from attacks.matching.models import Local, OneGradient, model_of
from attacks.matching.objectives import (
    CosineDistance,
    Distance,
    GroupConsistency,
    LayerwiseDistance,
    SquaredDistance,
    TotalVariation,
)
from attacks.matching.unknowns import Candidate, Unknowns
from attacks.victim.differentiable import DifferentiableVictim
from fl_sim.testing.leaks import build_seeded, gradients_of, leak_of

SHAPE = (1, 5, 5)
CLASSES = 4


def model() -> nn.Module:
    return build_seeded(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(25, 12), nn.Tanh(), nn.Linear(12, CLASSES))
    ).double()


def batch(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    images = torch.rand(size, *SHAPE, generator=draws, dtype=torch.float64)
    return images, torch.rand(size, CLASSES, generator=draws, dtype=torch.float64).softmax(dim=1)


def trained(batches: tuple[tuple[int, ...], ...], **sgd: Any) -> GradientLeak:
    """Return what `torch.optim.SGD` leaves of some batches of three examples."""
    start, images, labels = model(), *batch(3)
    network = copy.deepcopy(start)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, **sgd)
    for chosen in batches:
        for name, slope in gradients_of(
            network, images[list(chosen)], labels[list(chosen)]
        ).items():
            network.get_parameter(name).grad = slope
        optimizer.step()
    keys = ("momentum", "nesterov", "weight_decay")
    leak = GradientLeak(
        start,
        {name: torch.zeros_like(part) for name, part in start.named_parameters()},
        max(map(len, batches)),
        SHAPE,
        local_steps=len(batches),
        lr=0.1,
        update_dtype=torch.float64,
        examples=3,
        schedule=batches,
        **{key: sgd[key] for key in keys if key in sgd},
    )
    assert leak.optimizer is not None
    kept, _ = leak.optimizer.linear_map(len(batches))
    after = dict(network.named_parameters())
    sent = {n: (kept * w.detach() - after[n].detach()) / 0.1 for n, w in start.named_parameters()}
    return dataclasses.replace(leak, gradients=sent)


@pytest.mark.parametrize(
    "sgd",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"weight_decay": 0.1},
        {"momentum": 0.5, "weight_decay": 0.1},
    ],
    ids=["plain", "momentum", "nesterov", "decay", "both"],
)
@pytest.mark.parametrize("batches", [((0, 1, 2),) * 3, ((0, 1), (2,), (0, 2), (1,))], ids=len)
def test_unrolled_steps_are_the_clients(
    batches: tuple[tuple[int, ...], ...], sgd: dict[str, Any]
) -> None:
    leak = trained(batches, **sgd)
    victim = DifferentiableVictim.of(leak)
    sent, _ = model_of(leak, 3, "unrolled")(victim, Candidate(*batch(3), None), ())
    for name, part in sent.items():
        torch.testing.assert_close(part, leak.gradients[name], rtol=1e-9, atol=1e-11)


def test_the_surrogate_at_the_start_is_the_naive_model() -> None:
    leak = trained(((0, 1, 2),) * 2)
    victim = DifferentiableVictim.of(leak)
    for position, is_equal in ((1.0, True), (0.0, False)):
        candidate = Candidate(*batch(3), torch.tensor(position).double())
        near, _ = model_of(leak, 3, "surrogate")(victim, candidate, ())
        naive, _ = model_of(leak, 3, "naive")(victim, candidate, ())
        assert all(torch.allclose(near[n], naive[n], rtol=1e-12) for n in naive) == is_equal


@pytest.mark.parametrize("local", ["unrolled", "surrogate"])
def test_a_model_of_steps_says_what_it_needs(local: Local) -> None:
    leak = dataclasses.replace(trained(((0, 1, 2),) * 2), lr=None, update_dtype=None)
    with pytest.raises(NotApplicable, match="needs the learning rate, which isn't told"):
        model_of(leak, 3, local)
    blind = dataclasses.replace(
        trained(((0, 1, 2),) * 2), schedule=None, batch_size=None, examples=None
    )
    with pytest.raises(NotApplicable, match="needs the size of their batches"):
        model_of(blind, 3, "unrolled")


def problem(distance: Distance, *, seed: int = 0, is_free: bool = False) -> Problem:
    images, labels = batch(2, seed)
    leak = leak_of(model(), images, labels, sent_as="float64")
    victim = DifferentiableVictim.of(leak)
    unknowns = Unknowns(2, SHAPE, CLASSES, has_labels=is_free)
    priors = (TotalVariation(0.1), GroupConsistency(0.5))
    given = Given(victim.target, None if is_free else labels)
    return Problem(victim, given, OneGradient(), unknowns, distance, priors)


@pytest.mark.parametrize("distance", [SquaredDistance(), CosineDistance(), LayerwiseDistance()])
@pytest.mark.parametrize("is_free", [False, True])
@pytest.mark.parametrize(("clients", "starts"), [(1, 1), (1, 3), (2, 2)])
def test_what_is_played_back_is_the_objective_and_its_slope(
    distance: Distance, is_free: bool, clients: int, starts: int
) -> None:
    problems = [problem(distance, seed=seed, is_free=is_free) for seed in range(clients)]
    draws = torch.Generator().manual_seed(5)
    rows = torch.cat([p.unknowns.draw(starts, draws, torch.float64) for p in problems])
    losses, slopes = evaluation_of(problems, starts, 1000)(rows)
    for number, row in enumerate(rows):
        own = problems[number // starts]
        centre = rows[number // starts * starts :][:starts].mean(dim=0)
        variable = row.clone().requires_grad_()
        loss = own.loss(variable, centre, own.given)
        torch.testing.assert_close(losses[number], loss.detach())
        torch.testing.assert_close(slopes[number], torch.autograd.grad(loss, variable)[0])


def test_the_objective_is_zero_at_the_truth() -> None:
    images, _ = batch(2)
    for distance in (SquaredDistance(), CosineDistance(), LayerwiseDistance()):
        own = dataclasses.replace(problem(distance), priors=())
        row = images.reshape(-1)
        assert float(own.loss(row, row, own.given)) < 1e-12


def test_a_function_that_decides_by_values_is_not_traced() -> None:
    def turns(x: Tensor) -> tuple[Tensor]:
        return (x * 2 if float(x.sum()) > 2.5 else x,)

    assert traced(turns, torch.full((3,), 0.9)) is turns


def test_clients_attacked_together_get_what_each_gets_alone() -> None:
    network = model()
    pairs = [batch(1, seed) for seed in range(3)]
    leaks = [leak_of(network, *pair, sent_as="float64") for pair in pairs]
    labels = [
        LabelRecovery.of([ExampleLabel(Status.RECOVERED, label=label[0])]) for _, label in pairs
    ]
    for attack in (
        InvertingGradients(iterations=20, precision="float64"),
        GradInversion(iterations=20, restarts=2, precision="float64"),
    ):
        draws = [torch.Generator().manual_seed(seed) for seed in range(3)]
        found = attack.together(leaks, labels, draws)
        for seed, one in enumerate(found):
            alone = attack(leaks[seed], labels[seed], generator=torch.Generator().manual_seed(seed))
            assert one.images is not None
            assert alone.images is not None
            torch.testing.assert_close(one.images, alone.images, rtol=1e-6, atol=1e-8)
            assert one.gradient_evaluations == alone.gradient_evaluations
    with pytest.raises(ValueError, match="must have one model"):
        other = leak_of(build_seeded(model, seed=1), *pairs[0], sent_as="float64")
        attack.together([leaks[0], other], labels[:2], draws[:2])


@pytest.mark.parametrize("local", ["unrolled", "surrogate", "naive"])
def test_clients_of_several_steps_are_each_taken_by_their_own_update(local: Local) -> None:
    leaks = [dataclasses.replace(trained(((0, 1, 2),) * 2), model=model()) for _ in range(2)]
    other = {name: 2 * part for name, part in leaks[1].gradients.items()}
    leaks[1] = dataclasses.replace(leaks[1], gradients=other, model=leaks[0].model)
    labels = [
        LabelRecovery.of([ExampleLabel(Status.RECOVERED, label=one) for one in batch(3)[1]])
    ] * 2
    attack = InvertingGradients(iterations=6, precision="float64", local=local)
    draws = [torch.Generator().manual_seed(seed) for seed in range(2)]
    for seed, one in enumerate(attack.together(leaks, labels, draws)):
        alone = attack(leaks[seed], labels[seed], generator=torch.Generator().manual_seed(seed))
        assert one.images is not None
        assert alone.images is not None
        torch.testing.assert_close(one.images, alone.images, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"device": "gpu"}, "device must be .*, found 'gpu'"),
        ({"device": "cuda:99"}, "that PyTorch finds on this machine, found 'cuda:99'"),
    ],
    ids=["no name", "not there"],
)
def test_a_device_is_one_that_is_there(options: dict[str, Any], sentence: str) -> None:
    for attack in (InvertingGradients, Auto):
        with pytest.raises(ValueError, match=sentence):
            attack(**options)


class Attention(nn.Module):
    """Patches of 4×4 pixels that attend to each other, by PyTorch's fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(16, 48), nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        parts = self.mix(unfold(images, 4, stride=4).transpose(1, 2)).chunk(3, dim=-1)
        found = scaled_dot_product_attention(*(part[:, None] for part in parts))
        logits: Tensor = self.head(found.flatten(1))
        return logits


@pytest.mark.parametrize("iterations", [5, 120])
def test_attention_is_differentiated_twice(iterations: int) -> None:
    images = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.eye(CLASSES)[:1]
    leak = leak_of(build_seeded(Attention), images, labels)
    known = LabelRecovery.of([ExampleLabel(Status.RECOVERED, label=labels[0].double())])
    attack = InvertingGradients(iterations=iterations)
    found = attack(leak, known, generator=torch.Generator().manual_seed(0))
    assert found.gradient_evaluations == iterations
    assert found.images is not None
