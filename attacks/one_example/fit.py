"""Fit a label model to a rank-one gradient by least squares, with its error bars.

The observed `α` obeys `α = (p(λ) − y)/s`, `p(λ) = softmax(λ W g)`, up to noise; `s = 1/λ` unless
the gradient was scaled by an unknown c, then `s = 1/(c λ)`. With an augmented label y, linear in at
most two numbers β (`attacks.one_example.label_model`), that is a least-squares problem in λ,
perhaps c, and β, weighted by the covariance that noise and rounding give `α − (p − y)/s`: maximum
likelihood, to first order in the noise. The letters are those of `attacks.labels.soft_label`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.answers import Augmentation
from attacks.numerics.gauss_newton import gauss_newton
from attacks.numerics.least_squares import BAR, left_inverse, standard_errors
from attacks.one_example.label_model import LabelModel
from attacks.one_example.noise import Deviation
from attacks.one_example.problem import Problem
from attacks.victim.gradients import Array

NO_FIT = 1e4
"""Misfit, in standard deviations, that no further steps would mend."""


@dataclass(frozen=True)
class Root:
    """Where a fit starts.

    Args:
        λ: λ.
        s: 1/(c λ).
    """

    λ: float
    s: float


@dataclass(frozen=True, eq=False)
class Fit:
    """A label model fitted at one root.

    Args:
        model: what was fitted.
        λ: λ.
        s: 1/(c λ).
        is_scaled: whether c was free.
        label: (K,), on the simplex up to its error bar.
        std: (K,), standard errors of the label's entries, if the model is right.
        classes: (a, b), the largest entries of the label.
        residual: rms of the whitened residual; 1 is what noise and rounding explain.
        surplus: equations minus unknowns; a model without surplus fits anything.
    """

    model: LabelModel
    λ: float
    s: float
    is_scaled: bool
    label: Array
    std: Array
    classes: tuple[int, int]
    residual: float
    surplus: int

    @property
    def bar(self) -> float:
        """The label's largest error bar."""
        return BAR * float(self.std.max())

    @property
    def slack(self) -> float:
        """How far the label may leave [0, 1]."""
        return 1e-9 + min(self.bar * max(1.0, self.residual), 0.05)

    @property
    def unknowns(self) -> int:
        """Free numbers besides λ."""
        return self.model.unknowns + self.is_scaled

    @property
    def misfit(self) -> float:
        """Sum of the squared whitened residuals: χ², twice the negative log-likelihood."""
        return self.residual**2 * max(self.surplus, 1)

    @property
    def gradient_scale(self) -> float:
        """The factor c = 1/(s λ) on the gradient."""
        return 1 / (self.s * self.λ)

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation that the label shows."""
        return self.model.describe(self.label, *self.classes)


def fit_label(
    problem: Problem, model: LabelModel, root: Root, *, is_scaled: bool = False
) -> Fit | None:
    """Fit one model by Gauss-Newton on (λ, c, β), starting near a root.

    Args:
        problem: the rank-one problem.
        model: which labels.
        root: where to start.
        is_scaled: whether c is free, or 1.

    Returns:
        The fit, or None where it doesn't settle.
    """
    label, (a, b) = _start(problem, root)
    base, basis = model.basis(len(label), a, b)
    beta = np.asarray(np.linalg.lstsq(basis, label - base, rcond=None)[0] if basis.size else [])

    def line_at(x: Array) -> Linearised:
        return Linearised.at(
            problem, *_scales(x, is_scaled), base + basis @ x[1 + is_scaled :], basis, is_scaled
        )

    def step(x: Array) -> Array | None:
        line = line_at(x)
        change = line.step()
        if change is None or line.is_hopeless(change):
            return None
        if is_scaled:
            change[1] *= x[1]  # relative
        return change

    x, settled = gauss_newton(
        step,
        np.concatenate([[root.λ], [1 / root.s] * is_scaled, beta]),
        scales=1 + is_scaled,
        longest=0.5,
        tolerance=1e-11,
        most=30,
    )
    (λ, s), label, line = _scales(x, is_scaled), base + basis @ x[1 + is_scaled :], line_at(x)
    if not settled:
        change = line.step()
        if change is None or not line.is_hopeless(change):
            return None
    surplus = len(label) - 2 - model.unknowns - is_scaled + (problem.bias is not None)
    std = standard_errors(basis, left_inverse(line.design)[1 + is_scaled :])
    residual = float(np.linalg.norm(line.target) / np.sqrt(max(surplus, 1)))
    return Fit(model, λ, s, is_scaled, label, std, (a, b), residual, surplus)


def _start(problem: Problem, root: Root) -> tuple[Array, tuple[int, int]]:
    """Return ŷ at a root, and its two largest classes; under noise, the most significant ones."""
    p = problem.p(root.λ)
    label = p - root.s * problem.α
    excess = label
    if problem.is_noisy:
        std = Deviation.at(problem, root.λ, p, label, root.s, is_whole=False).std
        excess = (label - np.median(label)) / (abs(root.s) * std)
    a, b = (int(k) for k in np.argsort(-excess)[:2])
    return label, (a, b) if label[a] >= label[b] else (b, a)


def label_at(problem: Problem, model: LabelModel, root: Root) -> Fit:
    """Fit the label alone, λ and s as given."""
    label, (a, b) = _start(problem, root)
    base, basis = model.basis(len(label), a, b)
    line = Linearised.at(problem, root.λ, root.s, label, basis, False)
    target = line.deviation.whiten(problem.α - (problem.p(root.λ) - base) / root.s, 0.0)
    design = line.design[:, 1:]
    beta = np.asarray(np.linalg.lstsq(design, target, rcond=None)[0])
    surplus = len(label) - 1 - model.unknowns
    residual = float(np.linalg.norm(target - design @ beta) / np.sqrt(max(surplus, 1)))
    std = standard_errors(basis, left_inverse(design))
    label = base + basis @ beta
    return Fit(model, root.λ, root.s, False, label, std, (a, b), residual, surplus)


def _scales(x: Array, is_scaled: bool) -> tuple[float, float]:
    """Return λ and s of a fit's unknowns: λ, κ = c λ where c is free, and the label's."""
    return float(x[0]), 1 / float(x[int(is_scaled)])


@dataclass(frozen=True, eq=False)
class Linearised:
    """The whitened equations around a point.

    Args:
        deviation: what whitened them.
        target: (K,) or (K+1,) with a bias, `α − (p − y)/s` and `1 − λ g_bias`.
        design: (K or K+1, n), their derivatives after λ, after ln (c λ) where c is free (then λ's
            is at fixed c λ), and along the label's moves.
    """

    deviation: Deviation
    target: Array
    design: Array

    @classmethod
    def at(
        cls,
        problem: Problem,
        λ: float,
        s: float,
        label: Array,
        moves: Array,
        is_scaled: bool,
    ) -> Linearised:
        """Linearise at λ, s and a label that can move in directions (K, m)."""
        p = problem.p(λ)
        deviation = Deviation.at(problem, λ, p, label, s)
        g_bias = 0.0 if problem.bias is None else float(problem.g[-1])
        by_scale = p * (problem.logits - p @ problem.logits) / s
        columns = []
        if is_scaled:
            columns.append(deviation.whiten((p - label) / s, 0.0))
        else:
            by_scale = by_scale + p - label
        columns.insert(0, deviation.whiten(by_scale, g_bias))
        if moves.size:
            columns += list(deviation.whiten(-moves / s, 0.0).T)
        target = deviation.whiten(problem.α - (p - label) / s, 1 - λ * g_bias)
        return cls(deviation, target, np.stack(columns, axis=1))

    def step(self) -> Array | None:
        """Return the least-squares step; None where the equations aren't finite."""
        if not np.isfinite(self.design).all():
            return None
        step = np.asarray(np.linalg.lstsq(self.design, self.target, rcond=None)[0])
        return step if np.isfinite(step).all() else None

    def is_hopeless(self, step: Array) -> bool:
        """Say whether what a step would leave is more than further steps could mend."""
        left = float(np.linalg.norm(self.target - self.design @ step))
        return bool(left > NO_FIT * len(self.deviation.std) ** 0.5)
