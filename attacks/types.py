"""What an attack gets and what it returns.

Axis letters, the same everywhere: `B` batch, `C` channels, `H` `W` height and width, `K` classes,
`D` width of the last layer's input.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from attacks.answers import LabelRecovery, Reconstruction, Status
from attacks.facts import Fact, Told
from attacks.intake import plain_gradients, plain_model, require_buffers
from attacks.normalization import Normalization
from attacks.training import SGD, Schedule, Steps

Mode = Literal["eval", "train"]


@dataclass(frozen=True, eq=False)
class GradientLeak:
    """What a server sees of one client in one round; nothing that it couldn't know.

    Args:
        model: the network, at the weights that the client started from; it maps (N, C, H, W) to
            (N, K) logits, or to their log-softmax. Attacks don't modify it. Here it is on the CPU,
            without wrappers such as `torch.compile`'s.
        gradients: parameter name -> gradient of the mean cross-entropy over a batch, trainable
            parameters only, each of its parameter's shape. Over several local steps, the sum of
            the steps' gradients. Tensors of any layout or NumPy arrays, or a list of them as
            `torch.autograd.grad` returns it; None stands for a parameter without a gradient.
        batch_size: B, the examples in one step, in the largest where the last one of an epoch is
            smaller; None when unknown.
        input_shape: (C, H, W) of one image as the model takes it.
        local_steps: SGD steps behind the gradient, at least 1; with epochs, those of all epochs.
        lr: what the weights' difference was divided by, when the gradient was computed from a
            weight update: the learning rate, after several steps with momentum or weight decay the
            rate a step of plain SGD that reaches as far.
        mode: whether batch norm and dropout were in "eval" or "train" mode.
        update_dtype: the precision in which the client's weights came back, when the gradient is a
            weight difference divided by `lr`; None for a gradient sent as such.
        knowledge: the facts that the clients' defenses made public, in order; empty for an
            attacker who is unaware.
        normalization: what the clients' data loader does to pixels before the model; None where
            that isn't known. A model that normalises its own input takes pixels as they are, which
            `Normalization.of_range(0, 1)` states.
        keeps: what the update still shows of each of the gradient's entries: its "values", or its
            "signs" alone, as after the first step of Adam.
        caveat: what is inexact about the gradients, as the end of a sentence; None where nothing.
        examples: distinct examples behind the gradient, in all steps together; None when unknown,
            and to be found by rank. Clients that mix examples anew in each epoch train on more
            images than these, all of them in their span.
        schedule: which of them each step took, as far as it is told: "full-batch", "epochs",
            "steps", None, or the batches themselves, for benchmarks; see `attacks.training.Steps`.
        momentum: μ in [0, 1) of the clients' SGD.
        nesterov: whether it is Nesterov's.
        dampening: in [0, 1], of the momentum.
        weight_decay: at least 0, of the clients' SGD.
        optimizer_lr: the learning rate that the clients' SGD was told, where `lr` isn't that; None:
            it is.
        earlier: what the server saw of the same client in earlier rounds, for attacks that combine
            rounds, in order; whether they share their examples is the attacks' to find out. None:
            this round stands alone.
        buffers: floating buffers of the model as the client left them, by name, where they came
            back with the update: batch norm's running statistics, in train mode; empty where not.

    Raises:
        TypeError: model, gradients or schedule are of another type.
        ValueError: a gradient's name or shape doesn't fit the model, a number is out of range, the
            schedule doesn't fit the numbers, or facts contradict each other.

    Note:
        The loss is assumed to be the mean over a batch of the cross-entropy of softmax. Of another
        one (summed, binary, squared error) the gradients mean something else, and nothing that is
        said of them holds; attacks refuse where the gradients show it. What no test can tell: the
        whole gradient of other images, and in a network whose biases are zero a temperature.
    """

    model: nn.Module
    gradients: Mapping[str, Tensor]
    batch_size: int | None
    input_shape: tuple[int, int, int]
    local_steps: int = 1
    lr: float | None = None
    mode: Mode = "eval"
    update_dtype: torch.dtype | None = None
    knowledge: tuple[Fact, ...] = ()
    normalization: Normalization | None = None
    keeps: Literal["values", "signs"] = "values"
    caveat: str | None = None
    examples: int | None = None
    schedule: Schedule | None = None
    momentum: float = 0.0
    nesterov: bool = False
    dampening: float = 0.0
    weight_decay: float = 0.0
    optimizer_lr: float | None = None
    earlier: tuple[GradientLeak, ...] | None = None
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", plain_model(self.model))
        object.__setattr__(self, "gradients", plain_gradients(self.gradients, self.model))
        parameters = dict(self.model.named_parameters())
        for name, gradient in self.gradients.items():
            if name not in parameters:
                raise ValueError(f"gradient {name!r} belongs to no parameter of the model")
            if gradient.shape != parameters[name].shape:
                raise ValueError(
                    f"gradient {name!r} must have the shape {tuple(parameters[name].shape)} of its "
                    f"parameter, found {tuple(gradient.shape)}"
                )
            if not gradient.is_floating_point():
                raise ValueError(f"gradient {name!r} must be floating, found {gradient.dtype}")
        if len(self.input_shape) != 3 or min(self.input_shape) < 1:
            raise ValueError(
                f"input_shape must be (C, H, W), each at least 1, found {self.input_shape}"
            )
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be above 0 and finite, or None, found {self.lr}")
        if self.update_dtype is not None and self.lr is None:
            raise ValueError("a weight update needs its lr, above 0, found None")
        if self.mode not in ("eval", "train"):
            raise ValueError(f"mode must be 'eval' or 'train', found {self.mode!r}")
        if self.keeps not in ("values", "signs"):
            raise ValueError(f"keeps must be 'values' or 'signs', found {self.keeps!r}")
        self._check_normalization()
        self._check_knowledge()
        self._check_training()
        self._check_earlier()
        require_buffers(self.buffers, self.model)

    @functools.cached_property
    def steps(self) -> Steps:
        """What is told of the local steps' batches."""
        return Steps(self.local_steps, self.batch_size, self.examples, self.schedule)

    @property
    def processed(self) -> int | None:
        """Examples in all steps, each counted as often as it was used; None where not known."""
        sizes = self.steps.batch_sizes
        return None if sizes is None else sum(sizes)

    @property
    def optimizer(self) -> SGD | None:
        """The clients' SGD as told; None where its learning rate isn't known."""
        lr = self.lr if self.optimizer_lr is None else self.optimizer_lr
        if lr is None:
            return None
        return SGD(lr, self.momentum, self.nesterov, self.dampening, self.weight_decay)

    @functools.cached_property
    def told(self) -> Told:
        """What the facts that are known tell together."""
        return Told.by(self.knowledge)

    def _check_knowledge(self) -> None:
        facts = self.knowledge
        if not isinstance(facts, tuple) or not all(isinstance(fact, Fact) for fact in facts):
            raise TypeError(f"knowledge must be a tuple of attacks.facts, found {facts!r}")
        Told.by(facts)

    def _check_training(self) -> None:
        lr = self.optimizer_lr
        if lr is not None and not 0 < lr < math.inf:
            raise ValueError(f"optimizer_lr must be above 0 and finite, or None, found {lr}")
        SGD(1.0, self.momentum, self.nesterov, self.dampening, self.weight_decay)
        _ = self.steps

    def _check_earlier(self) -> None:
        rounds = () if self.earlier is None else self.earlier
        is_plain = isinstance(rounds, tuple) and all(
            isinstance(leak, GradientLeak) and leak.earlier is None for leak in rounds
        )
        if not is_plain:
            raise TypeError(
                "earlier must be a tuple of GradientLeaks that have none themselves, or None, "
                f"found {type(rounds).__name__}"
            )
        for leak in rounds:
            if leak.input_shape != self.input_shape:
                raise ValueError(
                    f"earlier rounds must have the input_shape {self.input_shape}, found "
                    f"{leak.input_shape}"
                )

    def _check_normalization(self) -> None:
        if self.normalization is None:
            return
        if not isinstance(self.normalization, Normalization):
            raise TypeError(
                "normalization must be an attacks.Normalization or None, found "
                f"{type(self.normalization).__name__}"
            )
        channels = len(self.normalization.mean)
        if channels not in (1, self.input_shape[0]):
            raise ValueError(
                f"normalization must be for 1 channel or for the images' {self.input_shape[0]}, "
                f"found {channels}"
            )

    def returned(self, name: str) -> Tensor:
        """Return a parameter's weights as they came back: A·w − lr·g, in float64.

        A is what the weight decay leaves of the start, 1 without any.

        Raises:
            ValueError: the gradient wasn't computed from a weight update, or shows signs alone.
        """
        if self.lr is None or self.keeps == "signs" or self.optimizer is None:
            raise ValueError("the weights that came back are known of a weight update alone")
        kept, _ = self.optimizer.linear_map(self.local_steps)
        weight = self.model.get_parameter(name).detach().double()
        return kept * weight - self.lr * self.gradients[name].detach().double()

    def rounding(self, name: str, rows: Tensor | None = None) -> Tensor:
        """Return the standard deviation of the float rounding in a gradient, entry by entry.

        A weight comes back as w − lr·g, rounded to a multiple of its ulp: uniform in ±ulp/2, that
        is ulp / √12, divided by lr. The ulp is that of the larger of |w| and |w − lr·g|: a weight
        that starts at zero is rounded relative to what is added, and one that is cancelled
        relative to what was there. A gradient sent as such is rounded relative to itself, in the
        coarser precision of its own and the model's, in which it was computed.

        Args:
            name: the parameter's.
            rows: indices of those that are wanted; None for all.

        Returns:
            float64, of the parameter's shape, or of the rows'.
        """
        gradient, weight = self.gradients[name].detach(), self.model.get_parameter(name).detach()
        if rows is not None:
            gradient, weight = gradient[rows], weight[rows]
        gradient = gradient.double()
        if self.update_dtype is None:
            return gradient.abs() * self.roundoff(name)
        assert self.lr is not None
        weight = weight.to(gradient)
        numbers = torch.finfo(self.update_dtype)
        size = torch.maximum(weight.abs(), (weight - self.lr * gradient).abs())
        exponent_bits = 0x7FF0_0000_0000_0000  # of a float64; alone they are a power of two
        power = (size.clamp(min=numbers.tiny).view(torch.int64) & exponent_bits).view(torch.float64)
        return power * (numbers.eps / (self.lr * 12**0.5))

    def is_coarse(self, names: Iterable[str]) -> bool:
        """Say whether gradients, or the weights that they were taken from, came in 16 bits."""
        dtypes = {self.gradients[name].dtype for name in names}
        dtypes |= {self.model.get_parameter(name).dtype for name in names}
        if self.update_dtype is not None:
            dtypes = {self.update_dtype}
        return any(torch.finfo(dtype).bits < 32 for dtype in dtypes)

    def roundoff(self, name: str) -> float:
        """Return the relative rounding of a gradient that was sent as such."""
        dtypes = (self.gradients[name].dtype, self.model.get_parameter(name).dtype)
        return max(torch.finfo(dtype).eps for dtype in dtypes)


class NotApplicable(Exception):
    """Raised inside an attack that finds that it doesn't cover a leak; becomes a status."""


def _require_rounds_used(leak: GradientLeak, combines_rounds: bool) -> None:
    if leak.earlier is not None and not combines_rounds:
        raise NotApplicable("this attack takes one round at a time, and is given several")


class LabelAttack(abc.ABC):
    """An attack on labels: a frozen dataclass of hyper-parameters; calling it is pure."""

    uses: ClassVar[tuple[type[Fact], ...]] = ()
    """Facts about the clients' defenses that it takes into account where the leak holds them."""
    reach: ClassVar[str] = ""
    """What it works on, by its own rules, as the end of a sentence; empty where it doesn't say."""
    is_long: ClassVar[bool] = False
    """Whether an update takes it so long that no round should wait for it: seconds and more."""
    combines_rounds: ClassVar[bool] = False
    """Whether it takes a leak's `earlier` rounds into account."""

    def __call__(self, leak: GradientLeak, *, generator: torch.Generator) -> LabelRecovery:
        """Recover the labels behind a leak, or say why not."""
        try:
            _require_rounds_used(leak, self.combines_rounds)
            return self.recover(leak, generator)
        except NotApplicable as verdict:
            return LabelRecovery(Status.NOT_APPLICABLE, str(verdict), batch_size=leak.batch_size)

    @abc.abstractmethod
    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Do the work; raise `NotApplicable` with the sentence where the attack can't work."""


class ImageAttack(abc.ABC):
    """An attack on images: a frozen dataclass of hyper-parameters; calling it is pure."""

    uses: ClassVar[tuple[type[Fact], ...]] = ()
    """Facts about the clients' defenses that it takes into account where the leak holds them."""
    reach: ClassVar[str] = ""
    """What it works on, by its own rules, as the end of a sentence; empty where it doesn't say."""
    is_long: ClassVar[bool] = False
    """Whether an update takes it so long that no round should wait for it: seconds and more."""
    combines_rounds: ClassVar[bool] = False
    """Whether it takes a leak's `earlier` rounds into account."""

    def __call__(
        self, leak: GradientLeak, labels: LabelRecovery, *, generator: torch.Generator
    ) -> Reconstruction:
        """Reconstruct the images behind a leak, or say why not."""
        try:
            _require_rounds_used(leak, self.combines_rounds)
            return self.reconstruct(leak, labels, generator)
        except NotApplicable as verdict:
            return Reconstruction(Status.NOT_APPLICABLE, str(verdict))

    @abc.abstractmethod
    def reconstruct(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        """Do the work; raise `NotApplicable` with the sentence where the attack can't work."""
