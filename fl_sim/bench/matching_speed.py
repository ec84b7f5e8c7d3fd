"""How fast gradient matching is, beside the loop that everyone writes first."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from attacks import ExampleImage, GradientLeak, Reconstruction, Status
from attacks.matching.evaluation import Given, Problem, evaluation_of
from attacks.matching.models import OneGradient
from attacks.matching.objectives import CosineDistance, TotalVariation
from attacks.matching.optimisers import Adam
from attacks.matching.schedules import StepDecay
from attacks.matching.search import Stop, search
from attacks.matching.unknowns import Unknowns
from attacks.victim.differentiable import DifferentiableVictim
from fl_sim.bench.victims import dataset, draw_batch, untrained
from fl_sim.testing.leaks import leak_of

TURN = 20
"""Iterations of a turn."""
VICTIMS = 16
SMOOTH = 1e-4


def plain_search(
    leak: GradientLeak, label: Tensor, iterations: int, smooth: float, generator: torch.Generator
) -> Reconstruction:
    """Return what the plain loop finds: double backward, `torch.optim.Adam` on signs, step decay.

    Args:
        leak: of one example.
        label: (1, K).
        iterations: of Adam at 0.1.
        smooth: weight of total variation.
        generator: of the start.
    """
    image = torch.rand(1, *leak.input_shape, generator=generator, dtype=torch.float64).float()
    image.requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.1)
    best, least = image.detach().clone(), torch.inf
    for step in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = StepDecay(0.1).rate(step, iterations)
        before = image.detach().clone()
        loss = _plain_step(leak, label, image, optimizer, smooth)
        if loss < least:
            best, least = before, loss
    example = ExampleImage(Status.NOT_CONVERGED, "a plain loop says nothing", best[0].double())
    return Reconstruction.of([example], gradient_evaluations=iterations)


def _plain_step(
    leak: GradientLeak,
    label: Tensor,
    image: Tensor,
    optimizer: torch.optim.Optimizer,
    smooth: float,
) -> float:
    parameters = [p for p in leak.model.parameters() if p.requires_grad]
    loss = -(log_softmax(leak.model(image), 1) * label).sum(1).mean()
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    pairs = list(zip(gradients, leak.gradients.values(), strict=True))
    dot = torch.stack([(a * b).sum() for a, b in pairs]).sum()
    own = torch.stack([a.square().sum() for a, _ in pairs]).sum().sqrt()
    sent = torch.stack([b.square().sum() for _, b in pairs]).sum().sqrt()
    across = (image[..., 1:] - image[..., :-1]).abs().mean()
    down = (image[..., 1:, :] - image[..., :-1, :]).abs().mean()
    total = 1 - dot / own / sent + smooth * (across + down)
    (slope,) = torch.autograd.grad(total, [image])
    image.grad = slope.sign()
    optimizer.step()
    with torch.no_grad():
        image.clamp_(0, 1)
    return float(total.detach())


def speeds(
    network: str, *, turns: int, seed: int, is_compiled: bool = False
) -> dict[str, tuple[float, str]]:
    """Return gradient evaluations a CPU second of each way, and how many times the plain loop's.

    Args:
        network: a name in `fl_sim.MODELS`.
        turns: that each way takes, alternately.
        seed: of weights and images.
        is_compiled: whether the search is compiled, which takes a minute, and several victims are
            left out.
    """
    data = dataset("photos")
    model = untrained(network, data, classes=10, seed=seed)
    images, labels = draw_batch(data, VICTIMS, "label-smoothing", classes=10, seed=seed)
    pairs = list(zip(images[:, None], labels[:, None], strict=True))
    leaks = [leak_of(model, image, label) for image, label in pairs]
    ways: dict[str, Callable[[], int]] = {"plain loop": partial(_plain_turn, leaks[0], labels[:1])}
    if is_compiled:
        ways["one victim, compiled"] = _turn(leaks[:1], labels, is_compiled=True)
    else:
        ways["one victim"] = _turn(leaks[:1], labels, is_compiled=False)
        ways[f"{VICTIMS} victims at once"] = _turn(leaks, labels, is_compiled=False)
    best = dict.fromkeys(ways, 0.0)
    for run in ways.values():
        run()
    for _ in range(turns):
        for way, run in ways.items():
            started = time.process_time()
            done = run()
            best[way] = max(best[way], done / (time.process_time() - started))
    return {way: (rate, f"{rate / best['plain loop']:.2f} times") for way, rate in best.items()}


def _plain_turn(leak: GradientLeak, label: Tensor) -> int:
    image = torch.full((1, *leak.input_shape), 0.3).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.1)
    for _ in range(TURN):
        _plain_step(leak, label, image, optimizer, SMOOTH)
    return TURN


def _turn(leaks: list[GradientLeak], labels: Tensor, *, is_compiled: bool) -> Callable[[], int]:
    """Return a turn of the search on victims at once, ready to run."""
    shape = leaks[0].input_shape
    unknowns = Unknowns(1, shape, labels.shape[1])
    victims = [DifferentiableVictim.of(leak, torch.float32) for leak in leaks]
    problems = [
        Problem(
            victim,
            Given(victim.target, label[None]),
            OneGradient(),
            unknowns,
            CosineDistance(),
            (TotalVariation(SMOOTH),),
        )
        for victim, label in zip(victims, labels, strict=False)
    ]
    evaluate = evaluation_of(problems, 1, 1000, is_compiled=is_compiled)
    draws = torch.Generator().manual_seed(0)
    rows = torch.cat([unknowns.draw(1, draws, torch.float32) for _ in problems])

    def run() -> int:
        found = search(
            evaluate,
            rows,
            optimiser=Adam(),
            schedule=StepDecay(0.1),
            stop=Stop(TURN, patience=TURN),
            project=unknowns.project,
        )
        return found.evaluations

    return run
