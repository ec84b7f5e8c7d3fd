"""Exact recovery of one example's augmented label and feature from the last layer's gradient.

Y. Wang, J. Liang, R. He, *Towards Eliminating Hard Label Constraints in Gradient Inversion
Attacks*, ICLR 2024, arXiv 2402.03124, section 4. One example behind the gradient makes it rank one,
`G = ∂L/∂W = (p − y) xᵀ`; with the row `g` and `α = G g / ‖g‖²`, one scalar λ is unknown:

    x = λ g,      p(λ) = softmax(W x + b),      ŷ(λ) = p(λ) − α / λ.

Σ ŷ(λ) = 1 holds for every λ, so a property of augmented labels has to select it: all entries but
the one or two largest are equal.

Differences from the paper: `g` and α come from all of G (its leading singular pair), not from one
row; the objective is `φ(λ) = Var(λ p − α)` over the tied entries, which doesn't vanish as λ grows,
and is scanned exactly instead of searched by L-BFGS and particle swarms; the augmentation is
detected, the answer carries an error bar, and nothing is accepted by comparing it with the truth.
A gradient that was multiplied by an unknown c is the matter of `attacks.gradient_scale`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from attacks.batch.recover import recover_batch
from attacks.gradient_scale import scaled_roots
from attacks.label_bars import Unknown, unknowns
from attacks.label_fit import Fit, LabelModel, Root, fit_label, label_at, label_models
from attacks.label_scan import Scan
from attacks.label_verdict import decide, explains
from attacks.last_layer import LastLayer
from attacks.network import Network
from attacks.second_example import one_example, without_second_example
from attacks.types import (
    GradientLeak,
    Knowledge,
    LabelAttack,
    LabelRecovery,
    Status,
    require_one_step,
    require_values,
)

MOST_PLAUSIBLE = 48
"""Points between the roots at which a label is fitted, to see how far noise leaves λ open."""


@dataclass(frozen=True)
class SoftLabelRecovery(LabelAttack):
    """Recover soft labels and features, of one example or of a batch; no augmentation is told.

    The loss is assumed to be the mean cross-entropy; a factor on the gradient is found.

    A batch takes features with zeros, as after ReLU, and more classes than examples: see
    `attacks.batch`.

    Args:
        tolerance: L∞ error of the label that RECOVERED stays below, in (0, 1).

    Raises:
        ValueError: tolerance is outside (0, 1).

    Note:
        `certificate` is the runner-up's misfit (φ over its expected value) over the best one's, at
        least 1; NaN with a bias (no search) and below five classes.
        RECOVERED needs that no second root fits within noise and rounding, however large it is.
    """

    tolerance: float = 1e-2

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be in (0, 1), found {self.tolerance}")

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Scan λ, fit the label models at every root, and answer with what is determined."""
        require_one_step(leak)
        require_values(leak)
        network = Network(leak)
        solve_one = functools.partial(
            solve,
            knowledge=leak.knowledge,
            unknown=unknowns(leak),
            tolerance=self.tolerance,
            is_nonnegative=network.has_nonnegative_features,
        )
        layer = one_example(leak, network)
        if layer is None:
            return recover_batch(leak, network, solve=solve_one, generator=generator)
        answer = solve_one(layer)
        coarser = layer.with_single_precision_labels()
        if answer.status is not Status.RECOVERED and not layer.is_noisy:
            # Labels may have come in float32 to a network in float64.
            rounded = solve_one(coarser) if coarser.eps != layer.eps else answer
            answer = rounded if rounded.status is Status.RECOVERED else answer
        if answer.status is not Status.RECOVERED:
            return answer
        return without_second_example(answer, leak, network)


def solve(
    layer: LastLayer,
    knowledge: Knowledge,
    *,
    unknown: frozenset[Unknown],
    tolerance: float,
    is_nonnegative: Callable[[], bool],
) -> LabelRecovery:
    """Solve one rank-one problem; see `SoftLabelRecovery`.

    Args:
        layer: the problem.
        knowledge: of the augmentation.
        unknown: what the attacker doesn't know.
        tolerance: L∞ error that RECOVERED stays below.
        is_nonnegative: says whether features are never negative; asked only where it matters.
    """
    models = label_models(knowledge)
    certificate = None
    plausible: list[Fit] = []
    if layer.bias is not None:
        scale = 1 / float(layer.g[-1]) if layer.g[-1] else np.inf
        signs: tuple[int, ...] = ()
        roots = [Root(scale, 1 / scale)] if np.isfinite(scale) else []
    else:
        scan = Scan.of(layer)
        signs = (1, -1)
        # It costs a pass through the network, and mostly roots of one sign only are possible.
        if len(np.unique(np.sign(scan.roots))) > 1 and is_nonnegative():
            signs = (layer.sign_of_features(),)
            scan = scan.of_sign(signs[0])
        roots = [Root(float(scale), float(1 / scale)) for scale in scan.roots]
        certificate = scan.certificate
        between = scan.explained[:: 1 + len(scan.explained) // MOST_PLAUSIBLE]
        plausible = [label_at(layer, models[-1], Root(float(x), float(1 / x))) for x in between]
    fits = [_fits(layer, models, root) for root in roots]
    is_explained = any(explains(layer, fit) for at_root in fits for fit in at_root)
    if Unknown.GRADIENT_SCALE in unknown and (layer.is_noisy or not is_explained):
        given = None if layer.bias is None else np.array([root.scale for root in roots])
        scaled = scaled_roots(layer, signs, given)
        fits += [_fits(layer, models, root, is_scaled=True) for root in scaled]
    return decide(
        layer,
        fits,
        unknown=unknown,
        tolerance=tolerance,
        certificate=certificate,
        plausible=plausible,
    )


def _fits(
    layer: LastLayer, models: list[LabelModel], root: Root, *, is_scaled: bool = False
) -> list[Fit]:
    """Fit the models, the simplest first; without noise, until one explains the gradient."""
    fits: list[Fit] = []
    for model in models:
        fit = fit_label(layer, model, root, is_scaled=is_scaled)
        if fit is not None:
            fits.append(fit)
            if fit.surplus >= 1 and not layer.is_noisy and explains(layer, fit):
                break
    return fits
