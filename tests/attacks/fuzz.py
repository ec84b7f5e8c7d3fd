"""Leaks at random, as they should be and as something else may have left them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss, one_hot

from attacks import GradientLeak
from defenses.label_smoothing import smooth_labels
from fl_sim.testing import gradients_of

Gradients = dict[str, Tensor]
SIDE = 8
SHAPE = (1, SIDE, SIDE)


@dataclass(frozen=True)
class Case:
    """A leak, the inputs whose gradients are in it, and what was done to it.

    A claim is right if it is one of them: of a gradient that was mixed or spliced, either's.
    """

    leak: GradientLeak
    images: Tensor
    labels: Tensor
    change: str


class Draw:
    """Draws of one case."""

    def __init__(self, *seeds: int) -> None:
        self.numpy = np.random.default_rng(seeds)
        self.torch = torch.Generator().manual_seed(int(self.numpy.integers(2**31)))

    def of(self, *choices: Any) -> Any:
        """Return one of several things."""
        return choices[int(self.numpy.integers(len(choices)))]

    def log(self, low: float, high: float) -> float:
        """Return a number between two, equally likely in its logarithm."""
        return float(np.exp(self.numpy.uniform(np.log(low), np.log(high))))


def dense(draw: Draw, classes: int, *, batch: bool) -> nn.Module:
    """A chain of linear layers, of any depth from one, and of any usual initialisation."""
    widths = [draw.of(*((64, 96, 128) if batch else (4, 8, 16, 32, 64)))] * draw.of(0, 1, 1, 2, 3)
    bias = draw.of(True, False)
    activation = nn.ReLU if batch else draw.of(nn.ReLU, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid)
    layers: list[nn.Module] = [nn.Flatten()]
    sizes = [SIDE * SIDE, *widths, classes]
    for index, (before, after) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(before, after, bias=bias), activation()]
        if index == len(sizes) - 2:
            layers.pop()
    return initialised(draw, nn.Sequential(*layers))


def convolutional(draw: Draw, classes: int) -> nn.Module:
    """Two convolutions and a linear layer, invertible or wide."""
    activation = draw.of(nn.Sigmoid, nn.Tanh, nn.ReLU, nn.LeakyReLU)
    return initialised(
        draw,
        nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            activation(),
            nn.Conv2d(8, 12, 3, padding=1),
            activation(),
            nn.Flatten(),
            nn.Linear(12 * SIDE * SIDE, classes, bias=draw.of(True, False)),
        ),
    )


def initialised(draw: Draw, model: nn.Sequential) -> nn.Module:
    """PyTorch's initialisation, He's with zero biases, or weights three times as large."""
    how = draw.of("default", "default", "he", "large")
    with torch.no_grad():
        for layer in model:
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                continue
            fan = layer.weight[0].numel()
            spread = {"default": fan**-0.5, "he": (6 / fan) ** 0.5, "large": 3 * fan**-0.5}[how]
            layer.weight.uniform_(-spread, spread, generator=draw.torch)
            if layer.bias is not None:
                width = 0.0 if how == "he" else fan**-0.5
                layer.bias.uniform_(-width, width, generator=draw.torch)
    return model.eval()


def images_of(draw: Draw, count: int) -> Tensor:
    """Noise, masks, sparse images, smooth ones."""
    noise = torch.rand(count, *SHAPE, generator=draw.torch)
    kind = draw.of("noise", "mask", "sparse", "smooth")
    if kind == "mask":
        return (noise > 0.5).float()
    if kind == "sparse":
        return noise * (torch.rand(noise.shape, generator=draw.torch) > 0.7)
    if kind == "smooth":
        return nn.functional.avg_pool2d(noise, 3, 1, 1)
    return noise


def labels_of(draw: Draw, count: int, classes: int) -> Tensor:
    """Hard, smoothed or mixed labels."""
    pick = torch.randint(classes, (2, count), generator=draw.torch)
    first, second = one_hot(pick, classes).double()
    kind = draw.of("hard", "smooth", "mixed")
    if kind == "smooth":
        epsilon = draw.numpy.uniform(0.02, 0.5)
        return smooth_labels(first, epsilon)
    if kind == "mixed":
        share = draw.numpy.uniform(0.02, 0.98)
        return share * first + (1 - share) * second
    return first


@dataclass(frozen=True)
class Inputs:
    """Images and labels behind a gradient."""

    images: Tensor
    labels: Tensor


Change = Callable[[Draw, Gradients, nn.Module, Inputs], Gradients | tuple[Gradients, Inputs]]


def entrywise(function: Callable[[Draw, Tensor], Tensor], *, some: bool = False) -> Change:
    """A map of each tensor; of `some`, of a part of the tensors only."""

    def change(draw: Draw, g: Gradients, *_: Any) -> Gradients:
        chosen = set(g) if not some else {name for name in g if draw.of(True, False)} or set(g)
        return {name: function(draw, t) if name in chosen else t for name, t in g.items()}

    return change


def _rms(t: Tensor) -> Tensor:
    return t.square().mean().sqrt().clamp(min=1e-30)


def _clip_values(draw: Draw, t: Tensor) -> Tensor:
    limit = float(t.abs().flatten().quantile(draw.numpy.uniform(0.1, 0.95)))
    return t.clamp(-limit, limit)


def _quantise(draw: Draw, t: Tensor) -> Tensor:
    step = t.abs().max().clamp(min=1e-30) / draw.of(1, 2, 4, 16, 64)
    return (t / step).round() * step


def _prune(draw: Draw, t: Tensor) -> Tensor:
    return t * (t.abs() >= t.abs().flatten().quantile(draw.of(0.3, 0.5, 0.9)))


def _scale_rows(draw: Draw, t: Tensor) -> Tensor:
    factors = torch.rand(len(t), generator=draw.torch, dtype=torch.float64).to(t) + 0.2
    return t * factors.reshape(-1, *[1] * (t.ndim - 1))


def _scale_columns(draw: Draw, t: Tensor) -> Tensor:
    return t * (torch.rand(t.shape[-1], generator=draw.torch).to(t) + 0.2)


def _power(draw: Draw, t: Tensor) -> Tensor:
    p = draw.of(1 / 3, 0.5, 0.9, 1.1, 2.0)
    return t.sign() * (t.abs() / _rms(t)) ** p * _rms(t)


def _add_noise(draw: Draw, t: Tensor) -> Tensor:
    size = draw.log(1e-4, 1) * _rms(t)
    return t + size * torch.randn(t.shape, generator=draw.torch).to(t)


def _biases(draw: Draw, g: Gradients, *_: Any) -> Gradients:
    factor = draw.log(0.2, 5)
    return {name: factor * t if name.endswith("bias") else t for name, t in g.items()}


def _tensors(draw: Draw, g: Gradients, *_: Any) -> Gradients:
    return {name: draw.log(0.2, 5) * t for name, t in g.items()}


def _all(draw: Draw, g: Gradients, *_: Any) -> Gradients:
    factor = draw.log(0.01, 100)
    return {name: factor * t for name, t in g.items()}


def _another(draw: Draw, inputs: Inputs) -> Inputs:
    images = images_of(draw, len(inputs.images)).to(inputs.images)
    return Inputs(images, labels_of(draw, *inputs.labels.shape))


def _both(one: Inputs, other: Inputs) -> Inputs:
    images = torch.cat([one.images, other.images])
    return Inputs(images, torch.cat([one.labels, other.labels]))


def _mixed(draw: Draw, g: Gradients, model: nn.Module, inputs: Inputs) -> tuple[Gradients, Inputs]:
    other = _another(draw, inputs)
    share, added = draw.log(0.01, 0.5), gradients_of(model, other.images, other.labels)
    mixed = {name: (1 - share) * t + share * added[name] for name, t in g.items()}
    return mixed, _both(inputs, other)


def _spliced(
    draw: Draw, g: Gradients, model: nn.Module, inputs: Inputs
) -> tuple[Gradients, Inputs]:
    """Some layers' gradients of another input."""
    other = _another(draw, inputs)
    theirs = gradients_of(model, other.images, other.labels)
    layers = {name.rpartition(".")[0]: draw.of(True, False) for name in g}
    mixed = {n: t if layers[n.rpartition(".")[0]] else theirs[n] for n, t in g.items()}
    return mixed, _both(inputs, other)


def _decayed(draw: Draw, g: Gradients, model: nn.Module, *_: Any) -> Gradients:
    weight = draw.log(1e-4, 1)
    return {name: t + weight * model.get_parameter(name).detach() for name, t in g.items()}


def _of_loss(loss: Callable[..., Tensor]) -> Change:
    return lambda draw, g, model, inputs: gradients_of(model, inputs.images, inputs.labels, loss)


def _focal(draw: Draw, g: Gradients, model: nn.Module, inputs: Inputs) -> tuple[Gradients, Inputs]:
    """That of hard labels; of soft ones it is the cross-entropy's of other soft labels."""
    hard = one_hot(inputs.labels.argmax(1), inputs.labels.shape[1]).double()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        own = (y * z.log_softmax(1)).sum(1)
        return (-((1 - own.exp()) ** 2) * own).mean()

    return gradients_of(model, inputs.images, hard, loss), Inputs(inputs.images, hard)


CHANGES: dict[str, Change] = {
    "signs": entrywise(lambda draw, t: t.sign() * 1e-3),
    "signs of some": entrywise(lambda draw, t: t.sign() * 1e-3, some=True),
    "Adam": entrywise(lambda draw, t: t / (t.abs() + 1e-8)),
    "Adam, large ε": entrywise(lambda draw, t: t / (t.abs() + draw.log(0.01, 10) * _rms(t))),
    "RMSprop": entrywise(lambda draw, t: t / (0.1 * t.abs() + 1e-8)),
    "clipped values": entrywise(_clip_values),
    "clipped values of some": entrywise(_clip_values, some=True),
    "powers": entrywise(_power),
    "powers of some": entrywise(_power, some=True),
    "tanh": entrywise(lambda draw, t: (t / _rms(t)).tanh()),
    "quantised": entrywise(_quantise),
    "pruned": entrywise(_prune),
    "scaled rows": entrywise(_scale_rows),
    "scaled columns": entrywise(_scale_columns),
    "scaled tensors": _tensors,
    "scaled biases": _biases,
    "scaled": _all,
    "noise": entrywise(_add_noise),
    "mixed with another": _mixed,
    "spliced with another": _spliced,
    "weight decay": _decayed,
    "squared error": _of_loss(mse_loss),
    "binary cross-entropy": _of_loss(binary_cross_entropy_with_logits),
    "focal loss": _focal,
}  # fmt: skip


ODDITIES = (
    "equal examples",
    "nearly parallel images",
    "one class",
    "dead units",
    "wrong size",
    "other weights",
)
"""What may be odd about a crowd beside what is done to its gradient."""


def odd(draw: Draw, oddity: str, model: nn.Module, inputs: Inputs) -> Inputs:
    """Make a batch odd in place of what it was; dead units are made in the model."""
    images, labels = inputs.images.clone(), inputs.labels.clone()
    if oddity == "equal examples":
        images[1], labels[1] = images[0], labels[0]
    elif oddity == "nearly parallel images":
        apart = draw.log(1e-6, 1e-1)
        images[1] = (1 - apart) * images[0] + apart * images[1]
    elif oddity == "one class":
        labels = labels[:1].repeat(len(labels), 1)
    elif oddity == "dead units":
        first = next(layer for layer in model if isinstance(layer, nn.Linear))
        with torch.no_grad():
            first.weight[: draw.of(2, 3, 4) * len(first.weight) // 5] = -1.0
            if first.bias is not None:
                first.bias.clamp_(max=-0.01)
    return Inputs(images, labels)


SINGLE = (1,), (3, 5, 10, 10, 20, 40)
SIZES = {
    "dense": SINGLE,
    "batch": ((2, 3, 4, 6), (24, 32, 48)),
    "crowd": ((4, 6, 8, 12), (2, 3, 4, 10, 10)),
    "odd": ((4, 6, 8, 12, 16, 24), (2, 3, 4, 10, 10)),
    "convolutional": SINGLE,
}
"""How many examples and classes are drawn, by kind."""


def draw_pair(kind: str, index: int, seed: int) -> tuple[Case, Case]:
    """Return a leak as it should be, and one with the same inputs that was changed.

    Args:
        kind: "dense" (one example), "batch", "crowd" (a batch of about as many examples as classes,
            or more), "odd" (a crowd that has one of `ODDITIES`), or "convolutional" (one example).
        index: which.
        seed: of all.
    """
    numbers = {"dense": 0, "batch": 1, "convolutional": 2, "crowd": 3, "odd": 4}
    draw = Draw(seed, index, numbers[kind])
    counts, class_counts = SIZES[kind]
    count, classes = draw.of(*counts), draw.of(*class_counts)
    with torch.random.fork_rng(devices=[]):  # layers draw weights that are then drawn anew
        if kind == "convolutional":
            model = convolutional(draw, classes)
        else:
            model = dense(draw, classes, batch=kind in ("batch", "crowd", "odd"))
    images, labels = images_of(draw, count), labels_of(draw, count, classes)
    precision = draw.of(torch.float32, torch.float32, torch.float64)
    model, images = model.to(precision), images.to(precision)
    oddity = draw.of(*ODDITIES) if kind == "odd" else "none"
    start = odd(draw, oddity, model, Inputs(images, labels))
    images, labels = start.images, start.labels
    gradients = gradients_of(model, images, labels)
    change = list(CHANGES)[index % len(CHANGES)]
    inputs = Inputs(images, labels)
    found = CHANGES[change](draw, gradients, model, inputs)
    changed, inputs = found if isinstance(found, tuple) else (found, inputs)
    lr = draw.of(None, 0.1, 1.0)
    size = draw.of(count, count, None)
    if oddity == "wrong size":
        size = count + draw.of(-2, -1, 1, 2)
    told = {"batch_size": size, "input_shape": SHAPE}
    if oddity == "other weights":
        with torch.no_grad():
            for weight in model.parameters():
                noise = torch.randn(weight.shape, generator=draw.torch).to(weight)
                weight.add_(draw.log(1e-4, 1e-1) * _rms(weight) * noise)
    clean, other = (
        GradientLeak(model, _sent(model, g, lr), **told, **_as(lr, model))
        for g in (gradients, changed)
    )
    return Case(clean, images, labels, "none"), Case(other, inputs.images, inputs.labels, change)


def _sent(model: nn.Module, g: Gradients, lr: float | None) -> Gradients:
    """Let gradients travel as they are, or as weights that one step left."""
    if lr is None:
        return g
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return {n: (w.double() - (w - lr * g[n]).double()) / lr for n, w in weights.items()}


def _as(lr: float | None, model: nn.Module) -> dict[str, Any]:
    if lr is None:
        return {}
    return {"lr": lr, "update_dtype": next(model.parameters()).dtype}
