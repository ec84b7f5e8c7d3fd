"""One linear layer's gradient `G = c (p − y) xᵀ` with noise, as a leak and as a problem.

The names of a problem's fields stand here alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import skip_init

from attacks import GradientLeak
from attacks.facts import Fact
from attacks.one_example.fit import Fit, Root, fit_label
from attacks.one_example.label_model import LabelModel
from attacks.one_example.problem import Problem
from attacks.victim.network import Network
from fl_sim.models import Normalize

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Head:
    """A layer, its gradient, and what was put into them.

    Args:
        leak: of the layer alone, in float64.
        weight: W, (K, D), or (K, D+1) with the bias as its last column.
        feature: x, (D,), or (D+1,) with the bias's 1.
        label: y, (K,).
    """

    leak: GradientLeak
    weight: Array
    feature: Array
    label: Array

    @property
    def problem(self) -> Problem:
        """The rank-one problem of its gradient."""
        return Problem.of(self.leak, Network.of(self.leak))

    def fit(self, *, pair: bool = False, total: float | None = 1.0, scaled: bool = False) -> Fit:
        """Fit a label model at the root."""
        seen = Seen.of(self.problem)
        scale = float(self.feature @ seen.g)
        root = Root(scale, 1 / scale)
        fit = fit_label(self.problem, LabelModel(pair, total), root, is_scaled=scaled)
        assert fit is not None
        return fit


@dataclass(frozen=True, eq=False)
class Seen:
    """A problem's fields, the bias a further column of W."""

    alpha: Array
    alpha_std: Array
    g: Array
    g_std: Array
    weight: Array
    eps: float
    is_noisy: bool
    has_bias: bool

    @classmethod
    def of(cls, problem: Problem) -> Seen:
        """Read them off."""
        weight = problem.weight.astype(np.float64)
        if problem.bias is not None:
            weight = np.column_stack([weight, problem.bias])
        return cls(
            problem.α,
            problem.σ_α,
            problem.g,
            problem.σ_g,
            weight,
            problem.eps,
            problem.is_noisy,
            problem.bias is not None,
        )


def head_of(
    label: Any,
    *,
    width: int = 24,
    bias: bool = False,
    is_signed: bool = False,
    spread: float = 1.0,
    noise: float = 0.0,
    factor: float = 1.0,
    dtype: torch.dtype = torch.float64,
    weight: Array | None = None,
    feature: Array | None = None,
    gradient: Callable[[Array, Array, Array], Array] | None = None,
    knowledge: tuple[Fact, ...] = (),
    seed: int = 0,
) -> Head:
    """Build a head and its gradient.

    Args:
        label: y, (K,).
        width: D.
        bias: whether the layer has one.
        is_signed: whether features may be negative, as the attacker sees by the network.
        spread: standard deviation of the logits, about.
        noise: standard deviation of the gradient's noise, relative to its root mean square.
        factor: c.
        dtype: that the gradient is rounded to.
        weight: W, (K, D); None to draw it.
        feature: x, (D,); None to draw it, in [0, 1].
        gradient: makes G (K, D or D+1) of the logits, y and x; None for the cross-entropy's.
        knowledge: the attacker's.
        seed: of all draws.
    """
    draws = np.random.default_rng(seed)
    y = np.asarray(label, dtype=np.float64)
    x = draws.uniform(size=width) if feature is None else feature
    if weight is None:
        weight = draws.normal(size=(len(y), len(x))) * spread / np.linalg.norm(x)
    if bias:
        x, weight = np.append(x, 1.0), np.column_stack([weight, draws.normal(size=len(y)) / 4])
    make = gradient or _cross_entropy
    g = factor * make(weight @ x, y, x)
    g = g + noise * np.sqrt(np.square(g).mean()) * draws.normal(size=g.shape)
    width = len(x) - bias
    linear = skip_init(nn.Linear, width, len(y), bias=bias, dtype=torch.float64)
    body = Normalize((0.5,), (0.25,)) if is_signed else nn.Identity()
    model = nn.Sequential(body, nn.Flatten(), linear)
    parts = {"2.weight": slice(0, width)} | ({"2.bias": -1} if bias else {})
    model.load_state_dict({name: torch.from_numpy(weight[:, part]) for name, part in parts.items()})
    gradients = {name: torch.from_numpy(g[:, part]).to(dtype) for name, part in parts.items()}
    leak = GradientLeak(model, gradients, 1, (1, 1, width), knowledge=knowledge)
    return Head(leak, weight, x, y)


def _cross_entropy(logits: Array, label: Array, feature: Array) -> Array:
    p = np.exp(logits - logits.max())
    return np.outer(p / p.sum() - label, feature)


@pytest.fixture
def make_head() -> Callable[..., Head]:
    """Builds a head from a label."""
    return head_of


@pytest.fixture
def see() -> Callable[[Problem], Seen]:
    """Reads a problem's fields off."""
    return Seen.of
