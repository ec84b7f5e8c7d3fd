"""On a GPU the search goes where it goes on the processor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from attacks import ExampleLabel, LabelRecovery, Status
from attacks.images.dlg import DLG
from attacks.images.gradinversion import GradInversion
from attacks.images.inverting_gradients import InvertingGradients
from attacks.matching.evaluation import Given, Problem, on_device, recorded, traced
from attacks.matching.models import OneGradient
from attacks.matching.objectives import SquaredDistance
from attacks.matching.restarts import free_bytes
from attacks.matching.unknowns import Unknowns
from attacks.victim.differentiable import DifferentiableVictim
from fl_sim.testing.leaks import build_seeded, leak_of

SHAPE = (3, 8, 8)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Flatten(),
        nn.Linear(512, 5),
    ).eval()  # fmt: skip


def victims(count: int) -> list[Any]:
    model, draws = build_seeded(network), torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        image = torch.rand(1, *SHAPE, generator=draws)
        label = torch.rand(1, 5, generator=draws).mul(3).softmax(dim=1)
        known = LabelRecovery.of([ExampleLabel(Status.RECOVERED, label=label[0].double())])
        found.append((leak_of(model, image, label, sent_as="float64"), known))
    return found


def test_a_problem_takes_all_its_tensors_along() -> None:
    (leak, labels) = victims(1)[0]
    victim = DifferentiableVictim.of(leak, torch.float32)
    given = Given(victim.target, labels.labels)
    unknowns = Unknowns(1, SHAPE, 5)
    there = torch.device("meta")
    problem = Problem(victim, given, OneGradient(), unknowns, SquaredDistance())
    moved, other = on_device([problem, problem], there)
    assert other.victim is moved.victim
    seen = moved.victim
    tensors = [*seen.parameters.values(), *seen.constants.values(), *seen.target.values()]
    tensors += [*moved.given.target.values(), moved.given.labels]
    tensors += [*seen.module.parameters(), *seen.module.buffers()]
    assert {part.device for part in tensors if part is not None} == {there}
    assert {part.device.type for part in leak.model.parameters()} == {"cpu"}
    assert victim.to(torch.device("cpu")) is victim


@pytest.mark.gpu
@pytest.mark.parametrize(
    "attack",
    [
        InvertingGradients(iterations=200, precision="float64", signed="no", lr=1e-3),
        GradInversion(iterations=120, restarts=3, precision="float64", lr=1e-3),
        DLG(iterations=30, restarts=2),
    ],
    ids=lambda attack: type(attack).__name__,
)
@pytest.mark.parametrize("count", [1, 3])
def test_a_gpu_finds_what_the_processor_finds(attack: Any, count: int) -> None:
    pairs = victims(count)
    images = []
    for device in ("cpu", "cuda"):
        there = type(attack)(**{**vars(attack), "device": device})
        draws = [torch.Generator().manual_seed(seed) for seed in range(count)]
        leaks, labels = zip(*pairs, strict=True)
        images.append(torch.cat([one.images for one in there.together(leaks, labels, draws)]))
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-5)
    assert images[1].device.type == "cpu"


@pytest.mark.gpu
def test_a_recording_is_what_was_recorded_elsewhere_too() -> None:
    def function(x: Any, y: Any, given: Any) -> Any:
        return (x * given).sin().sum(dim=1), y.square()

    one, other, given = (torch.rand(4, 6, device="cuda") for _ in range(3))
    run = recorded(traced(function, one, one, given), one, one, given)
    for x, y in ((one, other), (other, one)):
        found, expected = run(x, y, given), function(x, y, given)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.gpu
def test_what_waits_for_a_value_is_not_recorded() -> None:
    def waits(x: Any, y: Any, given: Any) -> Any:
        return x * float(given.sum()), y

    one = torch.rand(4, 6, device="cuda")
    assert recorded(waits, one, one, one) is waits


@pytest.mark.gpu
def test_memory_is_the_gpus() -> None:
    whole = torch.cuda.get_device_properties(0).total_memory
    assert 0 < free_bytes(torch.device("cuda")) <= whole
