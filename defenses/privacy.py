"""What a defense claims of differential privacy, in the mechanism's own numbers."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Literal, get_args

Unit = Literal["update", "example"]
"""What neighbouring data sets differ in: all that makes up a client's update, or one example."""


@dataclass(frozen=True)
class LocalPlan:
    """How a client trains in a round, as far as a claim may depend on it.

    Args:
        local_steps: steps in a round, at least 1.
        batch_size: examples drawn for a step, with those that mixing uses up; at least 1. Of an
            epoch the last batch may be smaller.
        share_size: examples that the client holds.
        local_epochs: passes over all of them, each in shuffled batches, that make up the steps;
            None where each step draws its batch anew.
        mode: of batch norm and dropout, "eval" or "train".
    """

    local_steps: int
    batch_size: int
    share_size: int
    local_epochs: int | None = None
    mode: Literal["eval", "train"] = "eval"


@dataclass(frozen=True)
class Privacy:
    """A Gaussian mechanism: values of bounded sensitivity leave a client under normal noise.

    A claim speaks of all that the defense lets out of a client's data in a round. Stages before it
    may do anything to its input, since the sensitivity bounds any two inputs; stages after it get
    nothing but its output, so that what they do costs nothing.

    Args:
        sensitivity: Δ, the most by which neighbours' values differ in the L2 norm, above 0. For
            updates clipped to a norm C any two differ by 2C; an example's clipped gradient, there
            or not, changes a sum by C.
        noise: σ, the noise's standard deviation in each entry, in the units of Δ, at least 0; 0
            guarantees nothing.
        sampling: q, the rate in [0, 1] at which a unit, on its own and unseen, takes part in a
            release (Poisson sampling); 1 where the server sees who takes part. Below 1,
            neighbours are a data set with the unit and the one without.
        unit: "update" or "example".
        releases: values with fresh noise that leave in a round, at least 1: one for each local
            step where each step's gradient is noised.

    Raises:
        ValueError: a number is missing or out of its range, or the unit is unknown.

    Example:
        >>> Privacy(sensitivity=2.0, noise=10.0).unit
        'update'
    """

    sensitivity: float
    noise: float
    sampling: float = 1.0
    unit: Unit = "update"
    releases: int = 1

    def __post_init__(self) -> None:
        if not (_is_finite(self.sensitivity) and self.sensitivity > 0):
            raise ValueError(
                f"sensitivity must be a finite number above 0, found {self.sensitivity!r}"
            )
        if not (_is_finite(self.noise) and self.noise >= 0):
            raise ValueError(f"noise must be a finite number of at least 0, found {self.noise!r}")
        if not (_is_finite(self.sampling) and 0 <= self.sampling <= 1):
            raise ValueError(f"sampling must be in [0, 1], found {self.sampling!r}")
        if self.unit not in get_args(Unit):
            known = " or ".join(repr(unit) for unit in get_args(Unit))
            raise ValueError(f"unit must be {known}, found {self.unit!r}")
        is_whole = isinstance(self.releases, int) and not isinstance(self.releases, bool)
        if not (is_whole and self.releases >= 1):
            raise ValueError(
                f"releases must be a whole number of at least 1, found {self.releases!r}"
            )


def _is_finite(value: object) -> bool:
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_real and math.isfinite(value)  # type: ignore[arg-type]
