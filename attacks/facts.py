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
class GaussianMechanism(Fact):
    """The weight difference is clipped, then Gaussian noise is added.

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


LABELS = (HardLabels, LabelSmoothing, Mixup)
"""Facts about labels."""
_NAMES = {Mixup: "mixup", LabelSmoothing: "label-smoothing"}


@dataclass(frozen=True)
class Told:
    """What facts tell together; None where they say nothing.

    Args:
        type: the augmentation: "hard", "label-smoothing", "mixup" or "mixup+label-smoothing".
        smoothing: ε.
        clipping_norm: L2 bound on the weight difference.
        noise_std: standard deviation of the noise on it.
    """

    type: str | None = None
    smoothing: float | None = None
    clipping_norm: float | None = None
    noise_std: float | None = None

    @classmethod
    def by(cls, facts: Sequence[Fact]) -> Told:
        """Put facts together, in the order in which the client applies what they tell of.

        Smoothings ε₁ and ε₂ make ε₁ + ε₂ − ε₁ε₂, before mixing or after; of two bounds the smaller
        one holds; variances of noise add up.

        Raises:
            ValueError: two facts contradict each other, or have no joint meaning.
        """
        smoothing = _smoothing([fact for fact in facts if isinstance(fact, LabelSmoothing)])
        norm, noise = _mechanism([fact for fact in facts if isinstance(fact, GaussianMechanism)])
        return cls(_type(facts), smoothing, norm, noise)


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


def _mechanism(facts: Sequence[GaussianMechanism]) -> tuple[float | None, float | None]:
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
