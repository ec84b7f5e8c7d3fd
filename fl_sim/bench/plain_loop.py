"""The loop that everyone writes first: double backward, and `torch.optim.Adam` on signs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from attacks import ExampleImage, GradientLeak, Reconstruction, Status
from attacks.matching.schedules import StepDecay

LR = 0.1
"""Adam's, as of `inverting-gradients`."""


def plain_search(
    leak: GradientLeak, label: Tensor, iterations: int, smooth: float, start: Tensor
) -> Reconstruction:
    """Return what `inverting-gradients` finds, by a plain loop.

    Args:
        leak: of one example.
        label: (1, K).
        iterations: of Adam at 0.1.
        smooth: weight of total variation.
        start: (1, C, H, W).
    """
    image, optimizer = plain_start(start)
    target = list(leak.gradients.values())
    best, least = image.detach().clone(), torch.inf
    for step in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = StepDecay(LR).rate(step, iterations)
        before = image.detach().clone()
        loss = plain_step(leak.model, target, label, image, optimizer, smooth)
        if loss < least:
            best, least = before, loss
    example = ExampleImage(Status.NOT_CONVERGED, "a plain loop says nothing", best[0].double())
    return Reconstruction.of([example], gradient_evaluations=iterations)


def plain_start(start: Tensor) -> tuple[Tensor, torch.optim.Optimizer]:
    """Return what the loop moves, and what moves it."""
    image = start.clone().requires_grad_()
    return image, torch.optim.Adam([image], lr=LR)


def plain_step(
    model: nn.Module,
    target: Sequence[Tensor],
    label: Tensor,
    image: Tensor,
    optimizer: torch.optim.Optimizer,
    smooth: float,
) -> float:
    """Move an image (1, C, H, W) by a step, in place; return the loss before it.

    Args:
        model: the victim's.
        target: the gradient that was sent, in its parameters' order.
        label: (1, K).
        image: what is moved, on the model's device.
        optimizer: what moves it.
        smooth: weight of total variation.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = -(log_softmax(model(image), 1) * label).sum(1).mean()
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    pairs = list(zip(gradients, target, strict=True))
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
