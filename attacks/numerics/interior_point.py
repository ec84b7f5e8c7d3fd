"""Many small linear programs over one cone, solved side by side by an interior-point method.

S. Mehrotra, *On the implementation of a primal-dual interior point method*, SIAM Journal on
Optimization 2 (1992): predictor and corrector. All programs share their constraints,

    min cᵀq   over   { q : x = Vᵀq + δ ≥ 0,  sᵀq = 1 },

and differ in c alone. With μ the multipliers of x ≥ 0 and λ that of the slice, a Newton step solves

    M dq − s dλ = h,      sᵀdq = r,      M = V diag(μ/x) Vᵀ      (B, B)

so a step costs a symmetric product, B² D flop, and a factorisation for each program; all vectors
are handled for all programs at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotrs
from scipy.optimize import linprog

Array = NDArray[np.float64]

STEP_SHARE = 0.995
"""Share of the way to the nearest bound that a step goes."""
DIAGONAL = 1e-14
"""Relative weight of the identity added to M, which grows singular as a vertex comes near."""


@dataclass(frozen=True, eq=False)
class Slice:
    """The feasible set `{ q : Vᵀq + δ ≥ 0, sᵀq = 1 }` that all programs share.

    Args:
        columns: V, (B, D).
        slack: δ, (D,), at least 0.
        weights: (D,), above 0; `s = V · weights`, so that sᵀq is a weighted sum of Vᵀq.
    """

    columns: Array
    slack: Array
    weights: Array

    @property
    def normal(self) -> Array:
        """The vector s, (B,)."""
        return self.columns @ self.weights


def solve_programs(
    region: Slice, objectives: Array, *, gap: float = 1e-6, iterations: int = 30
) -> Array:
    """Minimise each row of `objectives` over the slice.

    Args:
        region: the constraints.
        objectives: c, (N, B).
        gap: complementarity `xᵀμ` at which a program is solved, relative to where it began.
        iterations: after which a program is left as it is.

    Returns:
        q, (N, B): optimal to about `gap`; NaN where a program broke down.
    """
    state = _State.start(region, objectives)
    answers = state.q.copy()
    running = np.arange(len(objectives))
    first = state.complementarity()
    for _ in range(iterations):
        with np.errstate(all="ignore"):  # a program that breaks down goes on as NaN, and ends
            state = state.step(region)
        answers[running] = state.q
        open_ = (state.complementarity() > gap * first[running]) | (state.misfit() > gap)
        open_ &= np.isfinite(state.q).all(axis=1)
        running, state = running[open_], state.only(open_)
        if not len(running):
            break
    return answers


def solve_by_simplex(region: Slice, objective: Array) -> Array:
    """Minimise one objective (B,) by HiGHS, the simple reference; NaN where it fails."""
    size = len(objective)
    result = linprog(
        objective,
        A_ub=-region.columns.T,
        b_ub=region.slack,
        A_eq=region.normal[None],
        b_eq=np.ones(1),
        bounds=(None, None),
        method="highs",
    )
    return np.asarray(result.x) if result.status == 0 else np.full(size, np.nan)


@dataclass(frozen=True, eq=False)
class _State:
    """Iterates of N programs.

    Args:
        c: objectives, (N, B).
        q: (N, B).
        x: (N, D), above 0; equal to `Vᵀq + δ` once feasible.
        mu: (N, D), above 0.
        lam: λ, (N,).
        primal: `x − Vᵀq − δ`, (N, D).
        dual: `c − V μ − λ s`, (N, B).
        level: `1 − sᵀq`, (N,).
    """

    c: Array
    q: Array
    x: Array
    mu: Array
    lam: Array
    primal: Array
    dual: Array
    level: Array

    @classmethod
    def start(cls, region: Slice, objectives: Array) -> _State:
        """Begin on the slice, with positive x and μ; μ is feasible, x in general not yet."""
        c = objectives / np.linalg.norm(objectives, axis=1, keepdims=True)
        s = region.normal
        q = np.broadcast_to(s / (s @ s), c.shape)
        x = q @ region.columns + region.slack
        x = np.maximum(x, 0.1 * np.abs(x).mean(axis=1, keepdims=True))
        # V Vᵀ = 1 isn't assumed: the dual residual takes what is missing.
        along = c @ region.columns
        lam = (
            -np.maximum((-along / region.weights).max(axis=1), 0)
            - np.abs(along).mean(axis=1) / region.weights.mean()
        )
        mu = along - lam[:, None] * region.weights
        return cls._of(region, c, q, x, mu, lam)

    @classmethod
    def _of(cls, region: Slice, c: Array, q: Array, x: Array, mu: Array, lam: Array) -> _State:
        primal = x - q @ region.columns - region.slack
        dual = c - mu @ region.columns.T - lam[:, None] * region.normal
        return cls(c, q, x, mu, lam, primal, dual, 1 - q @ region.normal)

    def only(self, kept: NDArray[np.bool_]) -> _State:
        """Drop the other programs."""
        return _State(*(getattr(self, name)[kept] for name in self.__dataclass_fields__))

    def complementarity(self) -> Array:
        """Return the mean of x μ, (N,)."""
        return np.asarray(np.einsum("nd,nd->n", self.x, self.mu) / self.x.shape[1])

    def misfit(self) -> Array:
        """Return the largest infeasibility, relative to x, (N,)."""
        return np.asarray(np.abs(self.primal).max(axis=1) / self.x.max(axis=1))

    def step(self, region: Slice) -> _State:
        """Predict, correct, and go as far as x and μ stay above 0."""
        newton = _Newton.of(self, region)
        target = -self.x * self.mu
        dx, dmu = newton.direction(self, target)[1:3]
        mean = self.complementarity()
        a, b = _longest(self.x, dx), _longest(self.mu, dmu)
        ahead = np.einsum("nd,nd->n", self.x + a * dx, self.mu + b * dmu) / self.x.shape[1]
        centring = (ahead / mean) ** 3 * mean
        dq, dx, dmu, dlam = newton.direction(self, target + centring[:, None] - dx * dmu)
        a, b = STEP_SHARE * _longest(self.x, dx), STEP_SHARE * _longest(self.mu, dmu)
        return self._of(
            region,
            self.c,
            self.q + a * dq,
            self.x + a * dx,
            self.mu + b * dmu,
            self.lam + b[:, 0] * dlam,
        )


@dataclass(frozen=True, eq=False)
class _Newton:
    """The Newton systems of N programs.

    Args:
        columns: V, (B, D).
        normal: s, (B,).
        factors: Cholesky factors of M, N of (B, B).
        by_normal: M⁻¹ s, (N, B).
    """

    columns: Array
    normal: Array
    factors: list[Array]
    by_normal: Array

    @classmethod
    def of(cls, state: _State, region: Slice) -> _Newton:
        factors = []
        for root in np.sqrt(state.mu / state.x):
            scaled = region.columns * root
            matrix = scaled @ scaled.T  # numpy sees that it is symmetric: half the flop
            matrix.flat[:: len(matrix) + 1] *= 1 + DIAGONAL
            factors.append(dpotrf(matrix, overwrite_a=True)[0])
        s = region.normal
        by_normal = np.stack([dpotrs(factor, s)[0] for factor in factors])
        return cls(region.columns, s, factors, by_normal)

    def direction(self, state: _State, target: Array) -> tuple[Array, Array, Array, Array]:
        """Return (dq, dx, dμ, dλ) towards `x μ + x dμ + μ dx = x μ + target`."""
        weight = state.mu / state.x
        h = (target / state.x + weight * state.primal) @ self.columns.T - state.dual
        by_h = np.stack([dpotrs(f, row)[0] for f, row in zip(self.factors, h, strict=True)])
        dlam = (state.level - by_h @ self.normal) / (self.by_normal @ self.normal)
        dq = by_h + dlam[:, None] * self.by_normal
        dx = dq @ self.columns - state.primal
        return dq, dx, target / state.x - weight * dx, dlam


def _longest(values: Array, steps: Array) -> Array:
    """Return how far each row may go, at most 1, before an entry is 0; (N, 1)."""
    fastest = (-steps / values).max(axis=1, keepdims=True)
    return np.asarray(1 / np.maximum(fastest, 1.0))
