"""What a client sends for candidate images: the gradient of one step, or what several steps do.

With w₀ and w_T the weights before and after training, N images and S steps:

* `OneGradient`: ∇L(w₀) of all images, times S. Exact for one step; the naive model of several.
* `Surrogate`: S ∇L(α w₀ + (1 − α) w_T), α looked for along with the images. J. Zhu, R. Yao,
  M. Blaschko, *Surrogate model extension (SME)*, ICML 2023, arXiv 2306.00127, section 4.
* `Unrolled`: the client's SGD repeated step by step, differentiable (J. Geiping et al., NeurIPS
  2020, arXiv 2003.14053, section 6). Where several epochs go through the examples in orders that
  nobody tells, each epoch has images of its own, so that their order is free: D. Dimitrov et al.,
  *Data leakage in federated averaging*, TMLR 2022, arXiv 2206.12395, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from attacks.matching.unknowns import Candidate
from attacks.training import SGD, Batches, Steps
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.differentiable import DifferentiableVictim, Tensors

Local = Literal["unrolled", "surrogate", "naive"]


class Model(Protocol):
    """Says what a client with candidate images sends."""

    @property
    def gradients(self) -> int:
        """How many it takes one after the other, all of which are held at once."""

    def __call__(
        self, victim: DifferentiableVictim, candidate: Candidate, watched: Sequence[str]
    ) -> tuple[Tensors, Tensors]:
        """Return the gradient, and what some layers take on the images, by name."""


@dataclass(frozen=True)
class OneGradient:
    """The gradient of all images at the first weights, times the steps.

    Args:
        steps: S.
    """

    steps: int = 1
    gradients: ClassVar[int] = 1

    def __call__(
        self, victim: DifferentiableVictim, candidate: Candidate, watched: Sequence[str]
    ) -> tuple[Tensors, Tensors]:
        """Return the gradient, and what layers take."""
        gradient, inputs = victim.gradient(candidate.images, candidate.labels, watched=watched)
        if self.steps > 1:
            gradient = {name: self.steps * part for name, part in gradient.items()}
        return gradient, inputs


@dataclass(frozen=True)
class Surrogate:
    """The gradient of all images at a point between the weights before and after.

    Args:
        steps: S.
        kept: what weight decay leaves of the weights over the steps, 1 without any.
        divisor: what the weights' difference was divided by.
    """

    steps: int
    kept: float
    divisor: float
    gradients: ClassVar[int] = 1

    def __call__(
        self, victim: DifferentiableVictim, candidate: Candidate, watched: Sequence[str]
    ) -> tuple[Tensors, Tensors]:
        """Return the gradient, and what layers take."""
        position = candidate.position
        assert position is not None
        between = {
            name: position * before + (1 - position) * self._after(before, victim.target[name])
            for name, before in victim.parameters.items()
        }
        gradient, inputs = victim.gradient(
            candidate.images, candidate.labels, parameters=between, watched=watched
        )
        return {name: self.steps * part for name, part in gradient.items()}, inputs

    def _after(self, before: Tensor, sent: Tensor) -> Tensor:
        return self.kept * before - self.divisor * sent


@dataclass(frozen=True)
class Unrolled:
    """The client's steps, repeated.

    Args:
        sgd: its optimizer.
        divisor: what the weights' difference was divided by.
        batches: for each step, the numbers of the examples that it takes.
    """

    sgd: SGD
    divisor: float
    batches: Batches

    @property
    def gradients(self) -> int:
        """One for each step."""
        return len(self.batches)

    def __call__(
        self, victim: DifferentiableVictim, candidate: Candidate, watched: Sequence[str]
    ) -> tuple[Tensors, Tensors]:
        """Return the weights' difference over the divisor, and what layers take at first."""
        weights, moments = dict(victim.parameters), dict[str, Tensor]()
        first: Tensors | None = None
        for batch in self.batches:
            images, labels = candidate.images, candidate.labels
            if len(batch) < len(images):
                chosen = list(batch)
                images, labels = images[chosen], labels[chosen]
            gradient, inputs = victim.gradient(
                images, labels, parameters=weights, watched=watched if first is None else ()
            )
            first = inputs if first is None else first
            moments = {n: self._moment(g, weights[n], moments.get(n)) for n, g in gradient.items()}
            weights = {
                n: w - self.sgd.lr * self._move(gradient[n], w, moments[n])
                for n, w in weights.items()
            }
        kept, _ = self.sgd.linear_map(len(self.batches))
        sent = {n: (kept * w - weights[n]) / self.divisor for n, w in victim.parameters.items()}
        return sent, first or {}

    def _moment(self, gradient: Tensor, weight: Tensor, moment: Tensor | None) -> Tensor:
        d = gradient + self.sgd.weight_decay * weight if self.sgd.weight_decay else gradient
        if moment is None or not self.sgd.momentum:
            return d
        return self.sgd.momentum * moment + (1 - self.sgd.dampening) * d

    def _move(self, gradient: Tensor, weight: Tensor, moment: Tensor) -> Tensor:
        if not self.sgd.nesterov:
            return moment
        return gradient + self.sgd.weight_decay * weight + self.sgd.momentum * moment


def model_of(leak: GradientLeak, examples: int, local: Local) -> Model:
    """Return the model of a leak's training.

    Batches that aren't told are taken to go through the examples in order: that is only a matter of
    names where labels are free, and each epoch has examples of its own. Where labels are given, a
    guess (Dimitrov 2022 draws one).

    Args:
        leak: what the server sees.
        examples: N.
        local: the model of several steps.

    Raises:
        NotApplicable: several steps, and what the model needs isn't told.
    """
    if leak.local_steps == 1:
        return OneGradient()
    if local == "naive":
        return OneGradient(leak.local_steps)
    if leak.lr is None or leak.optimizer is None:
        raise NotApplicable(
            f"the {local} model of {leak.local_steps} local steps needs the learning rate, which "
            "isn't told; local = 'naive' does without"
        )
    if local == "surrogate":
        kept, _ = leak.optimizer.linear_map(leak.local_steps)
        return Surrogate(leak.local_steps, kept, leak.lr)
    return Unrolled(leak.optimizer, leak.lr, _batches(leak.steps, epochs_apart(leak) * examples))


def is_order_guessed(leak: GradientLeak) -> bool:
    """Say whether several steps take parts of the examples, and nobody tells which."""
    if leak.local_steps == 1 or isinstance(leak.schedule, tuple):
        return False
    return leak.schedule != "full-batch" and leak.batch_size != leak.steps.distinct


def epochs_apart(leak: GradientLeak) -> int:
    """Return the epochs that have images of their own, as nobody tells their order; else 1."""
    sizes, examples = leak.steps.batch_sizes, leak.steps.distinct
    if leak.schedule != "epochs" or not is_order_guessed(leak) or not (sizes and examples):
        return 1
    return sum(sizes) // examples


def _batches(steps: Steps, examples: int) -> Batches:
    """Return the examples of each step, as told or in order.

    Raises:
        NotApplicable: the size of batches isn't told.
    """
    if isinstance(steps.schedule, tuple):
        return steps.schedule
    sizes = steps.batch_sizes
    if sizes is None:
        raise NotApplicable(
            f"to repeat {steps.local_steps} local steps needs the size of their batches, which "
            "isn't told; local = 'surrogate' or 'naive' does without"
        )
    batches, at = [], 0
    for size in sizes:
        if at + size > examples:
            at = 0
        batches.append(tuple(range(at, min(at + size, examples))))
        at += size
    return tuple(batches)
