"""What a defense makes public, and what several of them together tell an attacker who knows.

A defense states its facts, its parameters and never a draw; an aware attacker gets those of all
stages, in the order in which the client applies them. Facts of other types than these are a third
party's: attacks that don't know them leave them aside.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """What one defense made public; a frozen dataclass of parameters."""


@dataclass(frozen=True)
class HardLabels(Fact):
    """Labels are left as they are: one class each."""


@dataclass(frozen=True)
class LabelSmoothing(Fact):
    """Labels are smoothed.

    Args:
        smoothing: ε, in [0, 1]; None where it is drawn anew for each example.

    Raises:
        ValueError: ε is out of its range.
    """

    smoothing: float | None = None

    def __post_init__(self) -> None:
        if self.smoothing is not None and not 0 <= self.smoothing <= 1:
            raise ValueError(f"smoothing must be in [0, 1] or None, found {self.smoothing}")


@dataclass(frozen=True)
class Mixup(Fact):
    """Pairs of examples are mixed, with a share that is drawn."""


@dataclass(frozen=True)
class NoiseMechanism(Fact):
    """The weight difference is clipped, then noise is added.

    Args:
        clipping_norm: L2 bound on the weight difference, above 0; None where none is told.
        noise_std: standard deviation of the noise, at least 0; None where it isn't told.

    Raises:
        ValueError: a value is out of its range.
    """

    clipping_norm: float | None = None
    noise_std: float | None = None

    def __post_init__(self) -> None:
        if self.clipping_norm is not None and not self.clipping_norm > 0:
            raise ValueError(f"clipping_norm must be above 0 or None, found {self.clipping_norm}")
        if self.noise_std is not None and not self.noise_std >= 0:
            raise ValueError(f"noise_std must be at least 0 or None, found {self.noise_std}")


@dataclass(frozen=True)
class GaussianMechanism(NoiseMechanism):
    """The noise is normal."""


@dataclass(frozen=True)
class LaplaceMechanism(NoiseMechanism):
    """The noise has a Laplace distribution."""


@dataclass(frozen=True)
class ClippedGradient(Fact):
    """Each step's gradient is clipped before the step.

    Args:
        clipping_norm: L2 bound on the gradient of the mean loss, above 0.
    """

    clipping_norm: float


@dataclass(frozen=True)
class ClippedExamples(Fact):
    """Each example's gradient is clipped, and noise is added to their sum.

    Args:
        clipping_norm: L2 bound on an example's gradient, above 0.
        noise_multiplier: the noise's standard deviation in units of the norm, at least 0.
    """

    clipping_norm: float
    noise_multiplier: float


@dataclass(frozen=True)
class ScaledGradient(Fact):
    """Each step's gradient is multiplied by a factor above 0 that is drawn."""


@dataclass(frozen=True)
class Pruned(Fact):
    """Entries of the update are left out, and come as zeros."""


@dataclass(frozen=True)
class LostColumns(Fact):
    """Columns of one linear layer's gradient are left out, and come as zeros.

    Args:
        layer: its name; None for the last linear layer.
    """

    layer: str | None = None


@dataclass(frozen=True)
class Quantized(Fact):
    """Each tensor's entries are rounded, at random, to levels of its norm.

    Args:
        levels: between 0 and the norm, at least 1.
    """

    levels: int


@dataclass(frozen=True)
class SignsOnly(Fact):
    """Only the signs of entries are left, with one size for each tensor."""


@dataclass(frozen=True)
class DroppedUnits(Fact):
    """Outputs of activations are dropped while clients train.

    Args:
        p: with which probability.
    """

    p: float


@dataclass(frozen=True)
class Bottleneck(Fact):
    """A variational bottleneck, which draws, stands in front of the last layer.

    Args:
        size: k, its variables.
        beta: weight of the Kullback-Leibler divergence in the loss.
    """

    size: int
    beta: float


@dataclass(frozen=True)
class Decaying(Fact):
    """Gradients are perturbed at random, with the probability 1 / (1 + β t) in round t + 1.

    Args:
        beta: β, at least 0.
    """

    beta: float


LABELS = (HardLabels, LabelSmoothing, Mixup)
"""Facts about labels."""
SIZES = (NoiseMechanism, ClippedGradient, ScaledGradient)
"""Facts about the size of a gradient, and of the noise on it."""
LOSSES = (Pruned, LostColumns)
"""Facts about entries that are left out."""
_NAMES = {Mixup: "mixup", LabelSmoothing: "label-smoothing"}


@dataclass(frozen=True)
class Told:
    """What facts tell together; None where they say nothing.

    Args:
        type: the augmentation: "hard", "label-smoothing", "mixup" or "mixup+label-smoothing".
        smoothing: ε.
        clipping_norm: L2 bound on the weight difference.
        noise_std: standard deviation of the noise on it.
        gradient_norm: L2 bound on a step's gradient.
        is_scaled: whether gradients are multiplied by a factor that isn't told.
        has_lost_entries: whether entries are left out, and come as zeros.
        is_rounded: whether entries are rounded to levels.
    """

    type: str | None = None
    smoothing: float | None = None
    clipping_norm: float | None = None
    noise_std: float | None = None
    gradient_norm: float | None = None
    is_scaled: bool = False
    has_lost_entries: bool = False
    is_rounded: bool = False

    @property
    def smoothing_of_classes(self) -> float | None:
        """ε where labels are known but for the class; None where more is open."""
        if self.type == "hard":
            return 0.0
        return self.smoothing if self.type == "label-smoothing" else None

    @classmethod
    def by(cls, facts: Sequence[Fact]) -> Told:
        """Put facts together, in the order in which the client applies what they tell of.

        Smoothings ε₁ and ε₂ make ε₁ + ε₂ − ε₁ε₂, before mixing or after; of two bounds the smaller
        one holds; variances of noise add up.

        Raises:
            ValueError: two facts contradict each other, or have no joint meaning.
        """
        smoothing = _smoothing([fact for fact in facts if isinstance(fact, LabelSmoothing)])
        norm, noise = _mechanism([fact for fact in facts if isinstance(fact, NoiseMechanism)])
        norms = [fact.clipping_norm for fact in facts if isinstance(fact, ClippedGradient)]
        return cls(
            _type(facts),
            smoothing,
            norm,
            noise,
            min(norms, default=None),
            any(isinstance(fact, ScaledGradient) for fact in facts),
            any(isinstance(fact, LOSSES) for fact in facts),
            any(isinstance(fact, Quantized) for fact in facts),
        )


def _type(facts: Sequence[Fact]) -> str | None:
    kinds = [type(fact) for fact in facts if isinstance(fact, LABELS)]
    if HardLabels in kinds and len(set(kinds)) > 1:
        others = ", ".join(kind.__name__ for kind in kinds if kind is not HardLabels)
        raise ValueError(f"facts must not contradict each other, found HardLabels beside {others}")
    if kinds.count(Mixup) > 1:
        raise ValueError(
            "facts must have a joint meaning, found Mixup twice: four classes would share a label"
        )
    names = [name for kind, name in _NAMES.items() if kind in kinds]
    return "+".join(names) or ("hard" if kinds else None)


def _smoothing(facts: Sequence[LabelSmoothing]) -> float | None:
    known = [fact.smoothing for fact in facts if fact.smoothing is not None]
    if not known or len(known) < len(facts):
        return None
    return functools.reduce(lambda e, f: e + f - e * f, known)


def _mechanism(facts: Sequence[NoiseMechanism]) -> tuple[float | None, float | None]:
    norm: float | None = None
    noise: float | None = None
    for fact in facts:
        if fact.clipping_norm is not None:
            if noise:
                raise ValueError(
                    "facts must have a joint meaning, found clipping after noise: it scales the "
                    f"noise of standard deviation {noise:g} by a factor that nobody knows"
                )
            norm = fact.clipping_norm if norm is None else min(norm, fact.clipping_norm)
        if fact.noise_std is not None:
            noise = fact.noise_std if noise is None else (noise**2 + fact.noise_std**2) ** 0.5
    return norm, noise
