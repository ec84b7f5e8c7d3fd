"""Schedules of step lengths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """Step lengths over a search."""

    def rate(self, step: int, steps: int) -> float:
        """Return the length of a step, counted from 0, of so many."""

    def settles(self, steps: int) -> int:
        """Return the step from which the length stays the same."""


@dataclass(frozen=True)
class Constant:
    """One length throughout.

    Args:
        base: that.
    """

    base: float

    def rate(self, step: int, steps: int) -> float:
        """Return it."""
        return self.base

    def settles(self, steps: int) -> int:
        """Return 0."""
        return 0


@dataclass(frozen=True)
class StepDecay:
    """A tenth after 3/8, 5/8 and 7/8 of the steps each (Geiping 2020).

    Args:
        base: the length at first.
    """

    base: float

    def rate(self, step: int, steps: int) -> float:
        """Return the length of a step."""
        return float(self.base * 0.1 ** sum(8 * step >= eighths * steps for eighths in (3, 5, 7)))

    def settles(self, steps: int) -> int:
        """Return the last drop."""
        return -(-7 * steps // 8)


@dataclass(frozen=True)
class CosineDecay:
    """Half a cosine, down to zero.

    Args:
        base: the length at first.
    """

    base: float

    def rate(self, step: int, steps: int) -> float:
        """Return the length of a step."""
        return self.base * 0.5 * (1 + math.cos(math.pi * step / steps))

    def settles(self, steps: int) -> int:
        """Return the end: it never does."""
        return steps
