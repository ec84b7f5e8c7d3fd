"""How a client trained, as far as an attacker is told: its optimizer, and its batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tensors = tuple[Tensor, ...]
Named = Literal["full-batch", "epochs", "steps"]
Batches = tuple[tuple[int, ...], ...]
Schedule = Named | Batches
SCHEDULES: tuple[str, ...] = get_args(Named)


@dataclass(frozen=True)
class SGD:
    """PyTorch's SGD, with a state that is fresh at the first step.

    Args:
        lr: learning rate, above 0.
        momentum: μ in [0, 1).
        nesterov: whether the momentum is Nesterov's.
        dampening: τ in [0, 1], of the momentum.
        weight_decay: wd, at least 0.

    Raises:
        ValueError: a value is out of its range, or two don't go together.
    """

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    dampening: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name, holds, rule in (
            ("lr", 0 < self.lr < math.inf, "above 0 and finite"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("dampening", 0 <= self.dampening <= 1, "in [0, 1]"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0 and finite"),
        ):
            if not holds:
                raise ValueError(f"{name} must be {rule}, found {getattr(self, name)}")
        if self.dampening > 0 and self.momentum == 0:
            raise ValueError(
                f"dampening is the momentum's, found {self.dampening:g} and a momentum of 0"
            )
        if self.nesterov and (self.momentum == 0 or self.dampening > 0):
            raise ValueError(
                "nesterov needs a momentum above 0 and no dampening, found "
                f"{self.momentum:g} and {self.dampening:g}"
            )

    def step(
        self, weights: Tensors, gradients: Tensors, buffers: Tensors | None
    ) -> tuple[Tensors, Tensors | None]:
        """Take a step, which is linear: of weights, or of what they change by.

        Args:
            weights: w.
            gradients: g, of their shapes.
            buffers: v that the step before returned; None at the first.

        Returns:
            w', and v' where there is momentum.
        """
        if self.weight_decay:
            pairs = zip(gradients, weights, strict=True)
            gradients = tuple(g + self.weight_decay * w for g, w in pairs)
        if not self.momentum:
            pairs = zip(weights, gradients, strict=True)
            return tuple(torch.sub(w, g, alpha=self.lr) for w, g in pairs), None
        if buffers is None:
            buffers = gradients
        else:
            pairs = zip(buffers, gradients, strict=True)
            buffers = tuple(self.momentum * v + (1 - self.dampening) * g for v, g in pairs)
        moved = buffers
        if self.nesterov:
            pairs = zip(gradients, buffers, strict=True)
            moved = tuple(g + self.momentum * v for g, v in pairs)
        pairs = zip(weights, moved, strict=True)
        return tuple(torch.sub(w, m, alpha=self.lr) for w, m in pairs), buffers

    def responses(self, steps: int) -> list[float]:
        """Return what a gradient of 1 in each of S steps alone takes off the weights after all."""
        weights: Tensors = (torch.zeros(steps, dtype=torch.float64),)
        buffers: Tensors | None = None
        for alone in torch.eye(steps, dtype=torch.float64):
            weights, buffers = self.step(weights, (alone,), buffers)
        return [-float(moved) for moved in weights[0]]

    def linear_map(self, steps: int) -> tuple[float, float]:
        """Return A and B with `w_S = A w − B g`, if all S steps had the gradient g.

        A step is linear in w, the momentum's buffer v and g: with d = g + wd·w, first `v = d`, then
        `v' = μ v + (1 − τ) d`, and `w' = w − lr v'`, or `w − lr (d + μ v')` with Nesterov's.
        """
        w, v, g = np.eye(3)
        d = g + self.weight_decay * w

        def step(buffer: NDArray[np.float64]) -> NDArray[np.float64]:
            move = d + self.momentum * buffer if self.nesterov else buffer
            return np.stack([w - self.lr * move, buffer, g])

        later = step(self.momentum * v + (1 - self.dampening) * d) if self.momentum else step(d)
        whole = np.linalg.matrix_power(later, steps - 1) @ step(d)
        return float(whole[0, 0]), -float(whole[0, 2])

    def mean_map(self, steps: int) -> tuple[float, float]:
        """Return the mean of A and B over the weights `A w − B g` before each of S steps."""
        maps = [(1.0, 0.0)] + [self.linear_map(t) for t in range(1, steps)]
        stays, moved = np.mean(maps, axis=0).tolist()
        return stays, moved


@dataclass(frozen=True)
class Steps:
    """What is told of the local steps' batches, and what follows from it.

    Args:
        local_steps: S, at least 1.
        batch_size: B, the examples in one step, in the largest where the last of an epoch is
            smaller; None when unknown.
        examples: n, the distinct examples in all steps together; None when unknown.
        schedule: "full-batch", every step takes all examples; "epochs", shuffled batches go through
            all examples, the last one of an epoch with what is left, and so in every epoch anew;
            "steps", every step draws its batch anew from more examples than it takes, or as many;
            or the batches themselves, one tuple of example numbers for each step. None: unknown.

    Raises:
        TypeError: the schedule is neither a known name nor a tuple of tuples of whole numbers.
        ValueError: a number is out of its range, or schedule and numbers don't fit.
    """

    local_steps: int = 1
    batch_size: int | None = None
    examples: int | None = None
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 or None, found {self.batch_size}")
        if self.local_steps < 1:
            raise ValueError(f"local_steps must be at least 1, found {self.local_steps}")
        if self.examples is not None and not (_is_whole(self.examples) and self.examples >= 1):
            raise ValueError(
                f"examples must be a whole number of at least 1 or None, found {self.examples!r}"
            )
        if isinstance(self.schedule, str):
            if self.schedule not in SCHEDULES:
                known = ", ".join(map(repr, SCHEDULES))
                raise ValueError(
                    f"schedule must be {known}, a tuple of batches or None, found {self.schedule!r}"
                )
            self._require_named()
        elif self.schedule is not None:
            self._require_batches(self.schedule)
        if self.batch_size is None or self.examples is None:
            return
        if self.examples > self.batch_size * self.local_steps:
            raise ValueError(
                f"examples must be at most batch_size × local_steps, {self.batch_size} × "
                f"{self.local_steps}, found {self.examples}"
            )

    def _require_named(self) -> None:
        if self.batch_size is None or self.examples is None:
            return
        pair = f"found {self.batch_size} and {self.examples}"
        if self.batch_size > self.examples:
            raise ValueError(f"batch_size must be at most examples, {pair}")
        if self.schedule == "full-batch" and self.batch_size < self.examples:
            raise ValueError(
                f"schedule 'full-batch' takes all examples in every step: batch_size must be "
                f"examples, {pair}"
            )
        if self.schedule == "epochs" and self.local_steps % self._steps_an_epoch():
            raise ValueError(
                f"schedule 'epochs' takes {self._steps_an_epoch()} steps for {self.examples} "
                f"examples in batches of {self.batch_size}: local_steps must be a multiple of "
                f"that, found {self.local_steps}"
            )

    def _require_batches(self, batches: object) -> None:
        form = "schedule must be one tuple of example numbers for each step"
        if not isinstance(batches, tuple) or not all(isinstance(b, tuple) for b in batches):
            raise TypeError(f"{form}, found {batches!r}")
        if not all(_is_whole(index) for batch in batches for index in batch):
            raise TypeError(f"{form}, found {batches!r}")
        if len(batches) != self.local_steps:
            raise ValueError(f"{form}, {self.local_steps} of them, found {len(batches)}")
        if any(not batch or len(set(batch)) < len(batch) for batch in batches):
            raise ValueError(f"{form}, none empty and no number twice in one, found {batches!r}")
        named = sorted({index for batch in batches for index in batch})
        if self.examples is None or named != list(range(self.examples)):
            raise ValueError(
                f"schedule must name all of the examples 0 to examples - 1 and no other, found "
                f"{len(named)} from {named[0]} to {named[-1]}, and examples {self.examples}"
            )
        largest = max(map(len, batches))
        if self.batch_size not in (None, largest):
            raise ValueError(
                f"batch_size must be that of the schedule's largest batch, {largest}, or None, "
                f"found {self.batch_size}"
            )

    def _steps_an_epoch(self) -> int:
        assert self.batch_size is not None
        assert self.examples is not None
        return -(-self.examples // self.batch_size)

    @property
    def distinct(self) -> int | None:
        """Examples that differ: those told, or the batch of a single step; None: unknown."""
        if self.examples is None and self.local_steps == 1:
            return self.batch_size
        return self.examples

    @property
    def batch_sizes(self) -> tuple[int, ...] | None:
        """The number of examples in each step; None where it isn't known."""
        if isinstance(self.schedule, tuple):
            return tuple(map(len, self.schedule))
        size = self.examples if self.schedule == "full-batch" else None
        size = size or self.batch_size
        if size is None:
            return None
        if self.schedule != "epochs" or self.local_steps == 1:
            return (size,) * self.local_steps
        if self.examples is None:
            return None
        whole = self._steps_an_epoch() - 1
        epoch = (size,) * whole + (self.examples - whole * size,)
        return epoch * (self.local_steps // (whole + 1))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
