"""The last layer's training, repeated on images that stand for the client's.

[ours] Layers below the last are known at the start and at the end, and are taken to go straight
from one to the other: at step t of S, image i leaves them as `x_i(t)`. The last layer doesn't go
straight. From weights that are far off, its first steps are long and those that follow are short;
so its own training is repeated,

    W ← W − lr Σ_i Σ_k c_ik (p_i − e_k) x_i(t)ᵀ,      p_i = softmax(W x_i(t)),

with the client's momentum and weight decay where there are any. A class mass m says how much of
class k image i stands for: `c_ik = m_k / n_k`, if it is one of the n_k images of that class, or
noise, which is of every class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from attacks.counts.head_gradient import HeadGradient
from attacks.counts.prototypes import Labels, members_of
from attacks.training import SGD
from attacks.victim.gradients import Array

PATH_POINTS = 3
"""Points of the way at which images run through the network; five did no better."""
WATCHED = 20
"""Steps of a training, at most, that count for the fit."""


@dataclass(frozen=True, eq=False)
class HeadTraining:
    """The last layer's training on images of the attacker's.

    Args:
        head: the layer, and what it left.
        points: (P, M, D), the images' features at P points of the way, evenly from the first
            step's weights to the last one's.
        labels: (M,), the images' classes; None: noise.
        optimizer: the client's; None where the way isn't known, and the first step stands for all.
    """

    head: HeadGradient
    points: Array
    labels: Labels | None
    optimizer: SGD | None

    @classmethod
    def of(cls, head: HeadGradient, images: Tensor, labels: Labels | None) -> HeadTraining:
        """Run the images (M, C, H, W) through the network, at points of the way."""
        leak = head.leak
        if leak.local_steps == 1 or leak.lr is None:
            return cls(head, head.features(images)[None], labels, None)
        count = min(leak.local_steps, PATH_POINTS)
        found = []
        for share in np.linspace(0, 1 - 1 / leak.local_steps, count).tolist():
            parameters = {name: p.detach() for name, p in leak.model.named_parameters()}
            for name in leak.gradients:
                start = parameters[name]
                moved = start.double().lerp(leak.returned(name), share)
                parameters[name] = moved.to(start.dtype)
            found.append(head.features(images, parameters=parameters))
        return cls(head, np.stack(found), labels, leak.optimizer)

    @property
    def steps(self) -> int:
        """S, as far as they are told apart."""
        return 1 if self.optimizer is None else self.head.leak.local_steps

    def moved(self, shift: Array) -> HeadTraining:
        """Return the training on images whose features are moved by (D,)."""
        return HeadTraining(self.head, self.points + shift, self.labels, self.optimizer)

    @cached_property
    def watched(self) -> tuple[int, ...]:
        """Steps that count for the fit, evenly by what a gradient leaves in the weights."""
        if self.optimizer is None:
            return (0,)
        left = np.cumsum(self.optimizer.responses(self.steps))
        count = min(self.steps, WATCHED)
        middles = (np.arange(count) + 0.5) / count * left[-1]
        return tuple(np.searchsorted(left, middles).tolist())

    @cached_property
    def features(self) -> Array:
        """The images' features at the watched steps, (T·M, D)."""
        return np.concatenate([self._features_at(step) for step in self.watched])

    @property
    def classes(self) -> Labels | None:
        """Classes of the rows of `features`, (T·M,); None: noise."""
        return None if self.labels is None else np.tile(self.labels, len(self.watched))

    def probabilities(self, mass: Array) -> Array:
        """Train on a class mass (K,) on the simplex; return p at the watched steps, (T·M, K)."""
        found = list(self._train(mass))
        return np.concatenate([found[step] for step in self.watched])

    def _train(self, mass: Array) -> Iterator[Array]:
        """Yield p of each step, (M, K)."""
        stands = mass * self._stands
        shares = stands.sum(axis=1, keepdims=True)
        weights: tuple[Tensor, ...] = tuple(map(torch.from_numpy, self.head.moving))
        buffers = None
        for step in range(self.steps):
            x = self._features_at(step)
            p = self.head.probabilities(x, *(w.numpy() for w in weights))
            yield p
            if self.optimizer is not None:
                down = shares * p - stands
                gradients = (down.T @ x, down.sum(axis=0))[: len(weights)]
                weights, buffers = self.optimizer.step(
                    weights, tuple(map(torch.from_numpy, gradients)), buffers
                )

    @cached_property
    def _stands(self) -> Array:
        """1/n_k where an image is one of the n_k of class k, else 0, (M, K)."""
        count, classes = self.points.shape[1], len(self.head.gradient)
        stands = np.zeros((count, classes))
        for k, members in enumerate(members_of(self.labels, classes, count)):
            stands[members, k] = 1 / len(members)
        return stands

    def _features_at(self, step: int) -> Array:
        """Return the images' features (M, D) in between the points."""
        last = len(self.points) - 1
        place = step / max(self.steps - 1, 1) * last
        before = min(int(place), max(last - 1, 0))
        share, after = place - before, min(before + 1, last)
        return np.asarray((1 - share) * self.points[before] + share * self.points[after])
