"""RECOVERED stands for a fit as exact as rounding and for images that follow from it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from attacks import ExampleLabel, GradientLeak, LabelRecovery, Reconstruction, Status
from attacks.images.dlg import DLG
from attacks.matching.determined import Evidence, evidence_for
from attacks.matching.evaluation import Given, Problem
from attacks.matching.models import OneGradient
from attacks.matching.objectives import SquaredDistance
from attacks.matching.unknowns import Unknowns
from attacks.victim.differentiable import DifferentiableVictim
from fl_sim.testing.leaks import SentAs, build_seeded, leak_of

SHAPE = (1, 6, 6)
CLASSES = 5


def connected(*, bias: bool, width: int = 48, activation: Callable[[], nn.Module] = nn.ReLU) -> Any:
    return lambda: nn.Sequential(
        nn.Flatten(),
        nn.Linear(36, width, bias=bias),
        activation(),
        nn.Linear(width, CLASSES, bias=bias),
    )


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(288, CLASSES)
    )


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(3, CLASSES),
    )  # fmt: skip


NETWORKS = {
    "biased": connected(bias=True),
    "unbiased": connected(bias=False),
    "smooth": connected(bias=True, activation=nn.Sigmoid),
    "narrow": connected(bias=True, width=3, activation=nn.Sigmoid),
    "convolutions": convolutions,
    "pooled": pooled,
}


def drawn(seed: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, *SHAPE, generator=generator)
    return images, torch.rand(size, CLASSES, generator=generator).double().mul(3).softmax(dim=1)


def known(labels: Tensor, status: Status = Status.RECOVERED) -> LabelRecovery:
    reason = None if status is Status.RECOVERED else "a guess"
    return LabelRecovery.of([ExampleLabel(status, reason, label=one.double()) for one in labels])


UNKNOWN = LabelRecovery(Status.NOT_APPLICABLE, "no label attack was asked")


def victim(network: str, *, seed: int, size: int = 1, sent_as: SentAs = "float64") -> Any:
    images, labels = drawn(seed, size)
    model = build_seeded(NETWORKS[network], seed=seed)
    return leak_of(model, images, labels, sent_as=sent_as), images, labels


def attack(leak: GradientLeak, labels: LabelRecovery, **options: Any) -> Reconstruction:
    options = {"iterations": 150, "restarts": 2, **options}
    return DLG(**options)(leak, labels, generator=torch.Generator().manual_seed(0))


def off(found: Reconstruction, images: Tensor) -> float:
    """Return the largest root mean square error of the claimed images, well paired; 0 of none."""
    claimed = [e.image for e in found.examples if e.status is Status.RECOVERED]
    if not claimed:
        return 0.0
    errors = torch.stack(claimed)[:, None] - images.double()
    squares = errors.square().mean(dim=(-3, -2, -1))
    return float(squares[linear_sum_assignment(squares.numpy())].max().sqrt())


def test_an_exact_fit_of_a_determined_image_is_claimed_with_an_error_that_holds() -> None:
    leak, images, labels = victim("smooth", seed=0, sent_as="float32")
    found = attack(leak, known(labels))
    assert found.status is Status.RECOVERED
    assert found.examples[0].error is not None
    # The image is off by no more than a few of its standard deviations.
    assert off(found, images) <= 4 * found.examples[0].error
    assert found.gradient_evaluations is not None
    assert found.gradient_evaluations <= 2 * 150


def evidence(network: str, *, is_free: bool = False, names: tuple[str, ...] = ()) -> Evidence:
    """Return what the gradient says of the true image and label."""
    leak, images, labels = victim(network, seed=0)
    if names:
        leak = dataclasses.replace(leak, gradients={n: leak.gradients[n] for n in names})
    seen = DifferentiableVictim.of(leak)
    unknowns = Unknowns(1, SHAPE, CLASSES, has_labels=is_free, is_boxed=False)
    parts = [images.double().reshape(-1), *([labels[0].double().log()] if is_free else [])]
    given = Given(seen.target, None if is_free else labels.double())
    problem = Problem(seen, given, OneGradient(), unknowns, SquaredDistance())
    return evidence_for(problem, torch.cat(parts), leak, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("network", ["biased", "smooth", "convolutions"])
@pytest.mark.parametrize("is_free", [False, True])
def test_the_true_image_of_a_wide_network_is_determined(network: str, is_free: bool) -> None:
    found = evidence(network, is_free=is_free)
    assert found.reason is None
    assert found.excess < 1
    assert found.error is not None
    assert found.error < 1e-9


def test_a_scale_that_a_free_label_takes_up_is_not_determined() -> None:
    """Without biases c·x with another label leaves the same gradient, for every c near 1."""
    assert evidence("unbiased").reason is None
    assert "along 2 of 41 directions" in str(evidence("unbiased", is_free=True).reason)


def test_too_few_equations_are_counted() -> None:
    assert "5 equations don't determine 36" in str(evidence("pooled", names=("4.bias",)).reason)
    # More numbers than pixels, but of averages alone: of eight, and what stands behind them.
    assert "directions" in str(evidence("pooled").reason)


def test_a_misfit_is_not_claimed_and_is_said() -> None:
    leak, _, labels = victim("smooth", seed=0)
    found = attack(leak, known(labels), iterations=3)
    assert found.status is Status.NOT_CONVERGED
    assert found.reason is not None
    assert "of its size off" in found.reason
    assert "6 gradient evaluations" in found.reason


def test_layers_gradients_of_two_images_are_nobodys() -> None:
    leak, labels, _ = changed("other image", "smooth", 0)
    found = attack(leak, labels)
    assert found.status is Status.NOT_CONVERGED
    assert "nothing vouches for them" in str(found.reason)


CHANGES = (
    *("none", "noise", "scaled", "other label", "other image", "free", "batch", "float32"),
    *("update", "part"),
)


def changed(change: str, network: str, seed: int) -> tuple[GradientLeak, LabelRecovery, Tensor]:
    size = 2 if change == "batch" else 1
    sent: SentAs = change if change in ("float32", "update") else "float64"  # type: ignore[assignment]
    leak, images, labels = victim(network, seed=seed, size=size, sent_as=sent)
    recovery = known(labels)
    draws = torch.Generator().manual_seed(seed)
    gradients = leak.gradients
    if change == "noise":
        gradients = {
            n: g + 1e-3 * g.std() * torch.randn(g.shape, generator=draws, dtype=g.dtype)
            for n, g in gradients.items()
            if g.numel() > 1
        }
    if change == "scaled":
        gradients = {n: 0.6 * g for n, g in gradients.items()}
    if change == "other image":
        last = list(gradients)[-2:]
        gradients = dict(gradients) | {
            n: g for n, g in victim(network, seed=seed + 100)[0].gradients.items() if n in last
        }
    if change == "part":
        gradients = dict(list(gradients.items())[-2:])
    if change == "other label":
        recovery = known(labels.roll(1, dims=1), Status.NOT_CONVERGED)
    if change == "free":
        recovery = UNKNOWN
    return dataclasses.replace(leak, gradients=gradients), recovery, images


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_false_is_claimed(change: str) -> None:
    counts = Counter[str]()
    for network in NETWORKS:
        for seed in range(6):
            leak, labels, images = changed(change, network, seed)
            found = attack(leak, labels, iterations=250)
            counts[found.status.value] += 1
            assert off(found, images) < 10 ** (-50 / 20), (change, network, seed)
    print(change, dict(counts))
