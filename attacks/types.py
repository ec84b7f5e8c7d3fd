"""What an attack gets and what it returns.

Axis letters, the same everywhere: `B` batch, `C` channels, `H` `W` height and width, `K` classes,
`D` width of the last layer's input.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import torch
from torch import Tensor, nn

Mode = Literal["eval", "train"]


class Status(StrEnum):
    """How an attack ended. Anything but RECOVERED comes with a one-sentence reason."""

    RECOVERED = "RECOVERED"
    NOT_CONVERGED = "NOT_CONVERGED"
    NOT_IDENTIFIABLE = "NOT_IDENTIFIABLE"
    NOT_APPLICABLE = "NOT_APPLICABLE"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Knowledge:
    """What an attacker knows of the clients' defenses; None where it doesn't.

    Args:
        type: the augmentation: "hard", "label-smoothing", "mixup" or "mixup+label-smoothing".
        smoothing: the label smoothing ε, in [0, 1].
        clipping_norm: L2 bound that the clients put on their weight difference, above 0.
        noise_std: standard deviation of the noise on the weight difference, at least 0.
    """

    type: str | None = None
    smoothing: float | None = None
    clipping_norm: float | None = None
    noise_std: float | None = None


@dataclass(frozen=True, eq=False)
class GradientLeak:
    """What a server sees of one client in one round; nothing that it couldn't know.

    Args:
        model: the network, at the weights that the client started from. Attacks don't modify it.
        gradients: parameter name -> gradient of the mean loss, trainable parameters only, each of
            its parameter's shape. Over several local steps, the sum of the steps' gradients.
        batch_size: B, the examples in one step; None when unknown.
        input_shape: (C, H, W) of one image.
        local_steps: SGD steps behind the gradient, at least 1.
        lr: the learning rate, when the gradient was computed from a weight update.
        mode: whether batch norm and dropout were in "eval" or "train" mode.
        update_dtype: the precision in which the client's weights came back, when the gradient is a
            weight difference divided by `lr`; None for a gradient sent as such.
        knowledge: what the attacker knows of the clients' defenses.

    Raises:
        ValueError: a gradient's name or shape doesn't fit the model, or a number is out of range.
    """

    model: nn.Module
    gradients: Mapping[str, Tensor]
    batch_size: int | None
    input_shape: tuple[int, int, int]
    local_steps: int = 1
    lr: float | None = None
    mode: Mode = "eval"
    update_dtype: torch.dtype | None = None
    knowledge: Knowledge = field(default_factory=Knowledge)

    def __post_init__(self) -> None:
        parameters = dict(self.model.named_parameters())
        for name, gradient in self.gradients.items():
            if name not in parameters:
                raise ValueError(f"gradient {name!r} belongs to no parameter of the model")
            if gradient.shape != parameters[name].shape:
                raise ValueError(
                    f"gradient {name!r} must have the shape {tuple(parameters[name].shape)} of its "
                    f"parameter, found {tuple(gradient.shape)}"
                )
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 or None, found {self.batch_size}")
        if self.local_steps < 1:
            raise ValueError(f"local_steps must be at least 1, found {self.local_steps}")
        if self.update_dtype is not None and not (self.lr and self.lr > 0):
            raise ValueError(f"a weight update needs its lr, above 0, found {self.lr}")

    def rounding(self, name: str) -> Tensor:
        """Return the standard deviation of the float rounding in a gradient, entry by entry.

        A weight w comes back rounded to a multiple of ulp(w): uniform in ±ulp/2, that is
        ulp(w) / √12, divided by lr. A gradient sent as such is rounded relative to itself.

        Returns:
            float64, of the parameter's shape.
        """
        gradient = self.gradients[name].detach().double()
        if self.update_dtype is None:
            dtype = self.gradients[name].dtype
            return gradient.abs() * torch.finfo(dtype).eps
        assert self.lr is not None
        weight = self.model.get_parameter(name).detach().to(self.update_dtype)
        ulp = torch.nextafter(weight.abs(), torch.full_like(weight, torch.inf)) - weight.abs()
        return ulp.double() / (self.lr * 12**0.5)


@dataclass(frozen=True)
class Augmentation:
    """What was done to a label.

    Args:
        type: "hard", "label-smoothing", "mixup" or "mixup+label-smoothing".
        smoothing: ε of `y = (1−ε)·y₀ + ε/K`; 0 without smoothing.
        mixing: the larger share of a mixed pair, in [0.5, 1]; None for one class.
    """

    type: str
    smoothing: float = 0.0
    mixing: float | None = None


@dataclass(frozen=True, eq=False)
class LabelRecovery:
    """What a label attack answers.

    Args:
        status: RECOVERED claims an error of less than the attack's tolerance in every label.
        reason: one sentence, unless RECOVERED.
        labels: (B, K) float64, rows of NaN where an example isn't recovered; None if not tried.
        features: (B, D) float64, the last layer's inputs, likewise.
        statuses: one for each example.
        augmentations: the detected augmentation of each example, None where undetected.
        residual: the smaller the better; 0 is a perfect fit, 1 what noise and rounding explain.
        certificate: higher is safer; the attack states its threshold. None without a runner-up.
        candidates: (N, K), the labels that fit equally well under NOT_IDENTIFIABLE.
        mass: (K,), the batch's label mass, summing to B, from attacks that count.
        batch_size: B, estimated where the leak doesn't give it.
    """

    status: Status
    reason: str | None = None
    labels: Tensor | None = None
    features: Tensor | None = None
    statuses: tuple[Status, ...] = ()
    augmentations: tuple[Augmentation | None, ...] = ()
    residual: float | None = None
    certificate: float | None = None
    candidates: Tensor | None = None
    mass: Tensor | None = None
    batch_size: int | None = None


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What an image attack answers.

    Args:
        status: RECOVERED claims a PSNR of at least 50 dB for every image.
        reason: one sentence, unless RECOVERED.
        images: (B, C, H, W) float64 pixels in [0, 1], NaN where an example isn't recovered; None
            under NOT_APPLICABLE.
        statuses: one for each example.
        residual: the attack's own measure of its error, the smaller the better.
    """

    status: Status
    reason: str | None = None
    images: Tensor | None = None
    statuses: tuple[Status, ...] = ()
    residual: float | None = None


class NotApplicable(Exception):
    """Raised inside an attack that finds that it doesn't cover a leak; becomes a status."""


class LabelAttack(abc.ABC):
    """An attack on labels: a frozen dataclass of hyper-parameters; calling it is pure."""

    def __call__(self, leak: GradientLeak, *, generator: torch.Generator) -> LabelRecovery:
        """Recover the labels behind a leak, or say why not."""
        try:
            return self.recover(leak, generator)
        except NotApplicable as verdict:
            return LabelRecovery(Status.NOT_APPLICABLE, str(verdict), batch_size=leak.batch_size)

    @abc.abstractmethod
    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Do the work; raise `NotApplicable` with the sentence where the attack can't work."""


class ImageAttack(abc.ABC):
    """An attack on images: a frozen dataclass of hyper-parameters; calling it is pure."""

    def __call__(
        self, leak: GradientLeak, labels: LabelRecovery, *, generator: torch.Generator
    ) -> Reconstruction:
        """Reconstruct the images behind a leak, or say why not."""
        try:
            return self.reconstruct(leak, labels, generator)
        except NotApplicable as verdict:
            return Reconstruction(Status.NOT_APPLICABLE, str(verdict))

    @abc.abstractmethod
    def reconstruct(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        """Do the work; raise `NotApplicable` with the sentence where the attack can't work."""


def require_one_example(leak: GradientLeak) -> None:
    """Raise `NotApplicable` unless one SGD step on one example (or on an unknown number) is behind.

    Raises:
        NotApplicable: several steps, or a batch.
    """
    if leak.local_steps > 1:
        raise NotApplicable(
            f"the update sums {leak.local_steps} local steps; this attack needs the gradient of one"
        )
    if leak.batch_size is not None and leak.batch_size > 1:
        raise NotApplicable(f"the batch has {leak.batch_size} examples; this attack works on one")
