"""What a test of an attack is made of: a seeded network, augmented labels, and a client's leak.

model = build_seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 10)), seed=1)
labels = draw_label(10, "mixup", numpy.random.default_rng(1))
leak = leak_of(model, images, labels, sent_as="update", lr=0.1)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attacks import GradientLeak
from attacks.facts import Fact, HardLabels, LabelSmoothing, Mixup
from attacks.training import SGD
from defenses.label_smoothing import smooth_labels
from fl_sim.seeds import seeded_layers

SentAs = Literal["float64", "float32", "update"]
Network = TypeVar("Network", bound=nn.Module)


def build_seeded(build: Callable[[], Network], *, seed: int = 0) -> Network:
    """Build a network from a seed, and leave PyTorch's global generator where it was.

    Args:
        build: makes it; layers draw their weights from the global generator.
        seed: of the weights.
    """
    with seeded_layers(seed):
        return build()


def draw_label(classes: int, augmentation: str, draws: np.random.Generator) -> Tensor:
    """Draw a label (1, K), float64, with ε ~ U(0.01, 0.5) and mixing ~ U(0.05, 0.95).

    Args:
        classes: K.
        augmentation: "hard", "label-smoothing", "mixup" or "mixup+label-smoothing"; the draws are
            the same for all.
        draws: gives the classes, mixing and ε.
    """
    a, b = draws.choice(classes, 2, replace=False)
    mixing, smoothing = draws.uniform(0.05, 0.95), draws.uniform(0.01, 0.5)
    label = torch.zeros(1, classes, dtype=torch.float64)
    if "mixup" in augmentation:
        label[0, a], label[0, b] = mixing, 1 - mixing
    else:
        label[0, a] = 1
    return smooth_labels(label, smoothing) if "smoothing" in augmentation else label


def facts_of(augmentation: str, smoothing: float | None = None) -> tuple[Fact, ...]:
    """Return what clients say who augment their labels.

    Args:
        augmentation: "hard", "label-smoothing", "mixup" or "mixup+label-smoothing".
        smoothing: ε, where it is fixed.
    """
    facts = {"hard": HardLabels(), "mixup": Mixup(), "label-smoothing": LabelSmoothing(smoothing)}
    return tuple(facts[part] for part in augmentation.split("+"))


def gradients_of(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> dict[str, Tensor]:
    """Return the gradient of the mean loss by each trainable parameter's name.

    Args:
        model: the network; it is left as it is, its `.grad` included.
        images: (B, C, H, W), in the network's precision.
        labels: (B, K), or classes (B,).
        loss: of logits and labels.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if labels.is_floating_point():
        labels = labels.to(images.dtype)
    computed = torch.autograd.grad(loss(model(images), labels), list(named.values()))
    return dict(zip(named, computed, strict=True))


def leak_of(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    sent_as: SentAs = "float32",
    lr: float = 0.1,
    factor: float = 1.0,
    noise_std: float = 0.0,
    generator: torch.Generator | None = None,
    **fields: Any,
) -> GradientLeak:
    """Return what a server sees of one SGD step on a batch.

    Args:
        model: the network, which is converted to the precision that the client computes in.
        images: (B, C, H, W), as the network takes them.
        labels: (B, K).
        sent_as: a "float64" gradient of the network in float64, a "float32" gradient, or an
            "update": float32 weights after a step at `lr`.
        lr: of an update.
        factor: on an update, as by clipping.
        noise_std: standard deviation of the Gaussian noise on an update's weights.
        generator: of the noise.
        fields: of the leak, in place of what follows from the rest: `batch_size=None`, say.
    """
    dtype = torch.float64 if sent_as == "float64" else torch.float32
    model = model.to(dtype)
    gradients = gradients_of(model, images.to(dtype), labels.to(dtype))
    told: dict[str, Any] = {"batch_size": len(images), "input_shape": tuple(images.shape[1:])}
    if sent_as == "update":
        told |= {"lr": lr, "update_dtype": torch.float32}
        for name, gradient in gradients.items():
            weight = model.get_parameter(name).detach()
            sent = weight - lr * factor * gradient
            if noise_std:
                sent = sent + noise_std * torch.randn(weight.shape, generator=generator)
            gradients[name] = (weight.double() - sent.double()) / lr
    return GradientLeak(model, gradients, **told | fields)


def leak_of_steps(
    model: nn.Module, local: nn.Module, optimizer: SGD, steps: int, **fields: Any
) -> GradientLeak:
    """Return what a server sees of a client that trained several steps of SGD.

    Args:
        model: as the client received it.
        local: as the client left it.
        optimizer: as the server is told.
        steps: S.
        fields: of the leak: its batch size, input shape, examples, schedule.
    """
    kept, reach = optimizer.linear_map(steps)
    sent = {name: p.detach().double() for name, p in local.named_parameters()}
    start = {name: p.detach().double() for name, p in model.named_parameters()}
    told = {name: value for name, value in vars(optimizer).items() if name != "lr"}
    return GradientLeak(
        model,
        {name: (kept * w - sent[name]) * steps / reach for name, w in start.items()},
        local_steps=steps,
        lr=reach / steps,
        update_dtype=next(model.parameters()).dtype,
        optimizer_lr=optimizer.lr,
        **told,
        **fields,
    )
