"""Which example was in which step: as told, or to be found.

Of a schedule that nobody tells, numbers are known: how many examples each step takes, and in an
epoch that every example is taken once. To first order in the learning rate the update doesn't
depend on more; its second order does. So at first every example is in every step, by the share of
the examples that the step takes; then these shares are unknowns beside the examples, and from what
they end at the nearest schedule is read off, epoch by epoch, by linear assignment.

Batches that are told by their examples' numbers leave open which of the examples found has which
number: the shares are the told ones times a matrix of n × n whose rows and columns sum to 1, and
what is read off is a permutation.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.training import Batches, Steps
from attacks.types import NotApplicable


@dataclass(frozen=True, eq=False)
class Timetable:
    """How much of each example each step takes.

    Args:
        taken: (S, n), in [0, 1]; rows sum to the steps' sizes.
        epoch: steps in which every example is taken once; 0 where each step draws anew.
        is_told: whether `taken` is the schedule itself, all of it 0 or 1.
        batches: the schedule, (S, n), but for the order of its columns; None where it isn't told.
    """

    taken: Tensor
    epoch: int
    is_told: bool
    batches: Tensor | None = None

    @classmethod
    def of(cls, told: Steps, count: int) -> Timetable:
        """Take what is told of n examples.

        Raises:
            NotApplicable: it doesn't fit n, or doesn't say how many a step takes.
        """
        if told.distinct is not None and count < told.distinct:
            raise NotApplicable(
                f"the first layer's update shows {count} different inputs of {told.distinct} "
                "examples"
            )
        try:
            told = dataclasses.replace(told, examples=count)
        except ValueError as misfit:
            raise NotApplicable(f"of {count} examples that the update shows, {misfit}") from misfit
        if isinstance(told.schedule, tuple):
            return cls._of_batches(told.schedule, count)
        size = count if told.schedule == "full-batch" else told.batch_size
        if size is None and told.schedule is None:
            size = count
        if size is None:
            raise NotApplicable(
                f"schedule {told.schedule!r} takes the batch size, and it isn't known"
            )
        if size > count:
            raise NotApplicable(f"a step took {size} examples, and the update shows {count}")
        return cls._of_size(told, count, size)

    @classmethod
    def _of_batches(cls, told: Batches, count: int) -> Timetable:
        batches = torch.zeros(len(told), count, dtype=torch.float64)
        for step, batch in enumerate(told):
            batches[step, list(batch)] = 1
        taken = batches.mean(dim=1, keepdim=True).expand_as(batches).clone()
        is_once = bool((batches.sum(dim=0) == 1).all())
        return cls(taken, len(told) if is_once else 0, taken.equal(batches), batches)

    @classmethod
    def _of_size(cls, told: Steps, count: int, size: int) -> Timetable:
        steps, in_epoch = told.local_steps, -(-count // size)
        is_whole = steps % in_epoch == 0
        is_once = steps * size == count  # drawn anew, and yet all different
        has_epochs = is_whole and (told.schedule in ("epochs", None) or is_once)
        sizes = torch.full((steps,), float(size), dtype=torch.float64)
        if has_epochs:
            sizes[in_epoch - 1 :: in_epoch] = count - (in_epoch - 1) * size
        taken = (sizes / count)[:, None].expand(steps, count).clone()
        return cls(taken, in_epoch if has_epochs else 0, is_told=size == count)

    @property
    def shares(self) -> Tensor:
        """ω (S, n): what is taken, over the steps' sizes."""
        return self.taken / self.sizes[:, None]

    @property
    def sizes(self) -> Tensor:
        """Examples in each step, (S,)."""
        return self.taken.sum(dim=1)

    @property
    def is_one_epoch(self) -> bool:
        """Whether every example is in one step, and which isn't told."""
        return not self.is_told and self.epoch == len(self.taken)

    def ways(self) -> Tensor:
        """Return directions of ω that keep all numbers, (S, n, Q)."""
        steps, count = self.taken.shape
        across = of_sum_zero(count)
        if self.batches is not None:
            left, values, _ = torch.linalg.svd(self.batches @ across, full_matrices=False)
            blocks = left[:, values > 1e-9 * steps * count]
            return _products(blocks, across) / self.sizes[:, None, None]
        length = self.epoch or 1
        within = of_sum_zero(length) if self.epoch else torch.ones(1, 1, dtype=torch.float64)
        epochs = torch.eye(steps // length, dtype=torch.float64)
        blocks = torch.einsum("ij,sp->isjp", epochs, within).flatten(2).flatten(0, 1)
        return _products(blocks, across) / self.sizes[:, None, None]

    def nearest(self, shares: Tensor) -> Timetable:
        """Return the schedule that is nearest to relaxed shares (S, n)."""
        wanted = (shares * self.sizes[:, None]).nan_to_num(0.0).numpy()
        if self.batches is not None:
            apart = np.square(wanted[:, :, None] - self.batches.numpy()[:, None]).sum(axis=0)
            own = linear_sum_assignment(apart)[1]
            return dataclasses.replace(self, taken=self.batches[:, own], is_told=True)
        sizes = self.sizes.round().long().tolist()
        taken = np.zeros_like(wanted)
        if not self.epoch:
            for step, size in enumerate(sizes):
                taken[step, np.argsort(-wanted[step], kind="stable")[:size]] = 1
        for first in range(0, len(sizes), self.epoch or len(sizes) + 1) if self.epoch else ():
            slots = [s for s in range(first, first + self.epoch) for _ in range(sizes[s])]
            places, examples = linear_sum_assignment(-wanted[slots])
            taken[np.asarray(slots)[places], examples] = 1
        return Timetable(torch.from_numpy(taken), self.epoch, is_told=True)


def _products(blocks: Tensor, across: Tensor) -> Tensor:
    """Return all products (S, n, P·Q) of columns (S, P) and (n, Q)."""
    return torch.einsum("sp,nq->snpq", blocks, across).flatten(2)


def of_sum_zero(count: int) -> Tensor:
    """Return an orthonormal basis (n, n − 1) of what sums to 0."""
    ones = torch.ones(count, 1, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(ones, mode="complete")[0]
    return basis[:, 1:]
