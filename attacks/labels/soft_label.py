"""Exact recovery of one example's augmented label and feature from the last layer's gradient.

Y. Wang, J. Liang, R. He, *Towards Eliminating Hard Label Constraints in Gradient Inversion
Attacks*, ICLR 2024, arXiv 2402.03124, section 4. One example behind the gradient makes it rank one,
`G = ∂L/∂W = (p − y) xᵀ`; with the row `g` and `α = G g / ‖g‖²`, one scalar λ is unknown:

    x = λ g,      p(λ) = softmax(W x + b),      ŷ(λ) = p(λ) − α / λ.

Σ ŷ(λ) = 1 holds for every λ, so a property of augmented labels has to select it: all entries but
the one or two largest are equal, and `φ(λ) = λ² Var(ŷ(λ))` over these vanishes.

Differences from the paper: `g` and α come from all of G (its leading singular pair), not from one
row; the factor λ² keeps φ from vanishing as λ grows; it is scanned exactly instead of searched by
L-BFGS and particle swarms; the augmentation is detected, the answer carries an error bar, and
nothing is accepted by comparing it with the truth. A gradient that was multiplied by an unknown c
is the matter of `attacks.one_example.factor`, a batch that of `attacks.batch`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from attacks.answers import LabelRecovery, Status
from attacks.batch.recover import split_batch
from attacks.batch.second_example import one_example, without_second_example
from attacks.counts.signs import labels_by_sign_counts
from attacks.facts import LABELS, LOSSES, SIZES, Bottleneck, Decaying, Fact, Quantized, SignsOnly
from attacks.lost.completed import completed, with_doubt
from attacks.masks.all_layers import with_all_layers
from attacks.masks.common_factor import Solve
from attacks.masks.recover import answer_by_masks
from attacks.one_example.bars import Unknown, unknowns
from attacks.one_example.factor import scaled_roots
from attacks.one_example.fit import Fit, Root, fit_label, label_at
from attacks.one_example.label_model import LabelModel, label_models
from attacks.one_example.noise import drift_limit, residual_limit
from attacks.one_example.problem import Problem
from attacks.one_example.scan import find_roots
from attacks.one_example.signs import label_of_signs, shows_signs
from attacks.one_example.verdict import Tried, decide
from attacks.one_example.view import View, view_few
from attacks.rounds.answer import labels_of_rounds
from attacks.rounds.known_noise import with_noise_known
from attacks.rounds.unperturbed import without_perturbed
from attacks.types import GradientLeak, LabelAttack, NotApplicable
from attacks.unrolled.answer import labels_of_steps
from attacks.unrolled.replay import replay
from attacks.variational.answer import has_bottleneck, labels_behind_bottleneck
from attacks.victim.gradients import Array
from attacks.victim.network import Network
from attacks.victim.require import require_values
from attacks.ways import best_of

WIDEST_BAR = 0.2
"""Error bar of a label by the last layer alone beyond which other layers don't settle it: they tell
α better, and nothing of a softmax that is saturated."""


def ŷ(problem: Problem | View, λ: Array) -> Array:
    """Return `ŷ(λ) = p(λ) − α / λ` for λ (N,); (N, K)."""
    return np.asarray(problem.p(λ) - problem.α / λ[:, None])


def φ(λ: Array, labels: Array, largest: int = 2) -> Array:
    """Return `φ(λ) = λ² Var(ŷ(λ))` over all but the `largest` entries of ŷ(λ) (N, K); (N,)."""
    tied = np.partition(labels, -largest, axis=-1)[:, :-largest]
    return np.asarray(λ**2 * tied.var(axis=-1))


def explains(problem: Problem, fit: Fit) -> bool:
    """Accept λ and a label y fitted to ŷ(λ): y is a label, and the rest noise or rounding."""
    y = fit.label
    return bool(
        fit.residual <= residual_limit(problem, fit.surplus)
        and y.min() >= -fit.slack
        and y.max() <= 1 + fit.slack
        # Σ α = 0, since Σ p = Σ y; a defense that scales single rows keeps G's rank one, and
        # centring makes of it another smoothing.
        and abs(problem.drift) <= drift_limit(problem, fit.s)
    )


@dataclass(frozen=True)
class SoftLabelRecovery(LabelAttack):
    """Recover soft labels and features, of one example or of a batch; no augmentation is told.

    The loss is assumed to be the mean cross-entropy; a factor on the gradient is found.

    A batch is taken apart in one of two ways. By the last layer's rays, where features have zeros,
    as after a ReLU, and classes outnumber examples: see `attacks.batch`. Where they don't show all
    examples, by the masks of a hidden layer with a ReLU or leaky ReLU behind it, or by the zeros of
    one with a ReLU before it, for any number of classes: see `attacks.masks`. A reason says what
    stood in the way of either.

    Several steps of SGD, of all examples or of epochs in shuffled batches, are repeated until they
    leave the update that was sent; which step took which example is found: see `attacks.unrolled`.
    So are several steps on one example through convolutions (`attacks.unrolled.one_image`).
    The feature is that at the weights the client started from.

    Behind a variational bottleneck that is told, the layers before it show the examples, and what
    was drawn for each: see `attacks.variational`. No augmentation is detected of a batch then.

    Of an update of which signs alone were sent, and that is told, one example's class is shown, and
    of a batch how many there are of each, before training (`attacks.counts.signs`).

    Of a leak with `earlier` rounds, all of them are taken together: see `attacks.rounds`. Labels
    are then free, sums of 1, and no augmentation is detected; the feature is the latest round's.

    Args:
        tolerance: L∞ error of the label that RECOVERED stays below, in (0, 1).

    Raises:
        ValueError: tolerance is outside (0, 1).

    Note:
        `certificate` is the runner-up's misfit (φ over its expected value) over the best one's, at
        least 1; None with a bias (no search) and below five classes.
        Of a batch taken apart by masks it is the inverse of the share of units in which an
        example's label, handed down the network, misses its part of the layer's gradient; below 10
        nothing is RECOVERED.
        With B unknown, copies of one input leave the gradient of a single one with their mean
        label, and that is the label that is RECOVERED.
        RECOVERED needs that no second root fits within noise and rounding, however large it is.
    """

    reach: ClassVar[str] = (
        "one local step, of one example or of a batch whose ReLU layers tell examples apart, and "
        "several steps or epochs of a fully connected network with ReLU, or, on one example, of a "
        "chain of convolutions"
    )
    combines_rounds: ClassVar[bool] = True
    uses: ClassVar[tuple[type[Fact], ...]] = (
        *(*LABELS, *SIZES, *LOSSES),
        *(Quantized, SignsOnly, Decaying, Bottleneck),
    )
    tolerance: float = 1e-2

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be in (0, 1), found {self.tolerance}")

    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        """Split the gradient into its examples' problems, and solve each."""
        require_values(leak)
        leak = without_perturbed(leak)
        if leak.earlier is not None:
            return labels_of_rounds(leak, tolerance=self.tolerance)
        return with_noise_known(
            leak,
            lambda: self._of_one_round(leak, generator),
            lambda: labels_of_rounds(leak, tolerance=self.tolerance),
        )

    def _of_one_round(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        if shows_signs(leak):
            of_signs = label_of_signs if leak.batch_size == 1 else labels_by_sign_counts
            return of_signs(leak, Network.of(leak))
        if has_bottleneck(leak):
            ways = (
                lambda: labels_behind_bottleneck(leak, tolerance=self.tolerance),
                lambda: self._of_whole(leak, generator),
            )
            return best_of(*(ways if leak.batch_size != 1 else ways[::-1]))
        completion = completed(leak, generator)
        found = self._of_whole(completion.leak, generator)
        if not len(completion.errors):
            return found
        return with_doubt(found, float(completion.errors.max()))

    def _of_whole(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        network, models, unknown = Network.of(leak), label_models(leak.told), unknowns(leak)
        if leak.local_steps > 1:
            return labels_of_steps(replay(leak, network), self.tolerance)

        def solve(problem: Problem, *, is_scale_known: bool = False) -> LabelRecovery:
            return solve_one(
                problem,
                models=models,
                unknown=unknown - {Unknown.GRADIENT_SCALE} if is_scale_known else unknown,
                tolerance=self.tolerance,
                is_nonnegative=network.has_nonnegative_features,
            )

        problem = one_example(leak, network)
        if problem is None:
            return self._batch(leak, network, generator, solve)
        answer = solve(problem)
        coarser = problem.with_single_precision_labels()
        if answer.status is not Status.RECOVERED and not problem.is_noisy:
            # Labels may have come in float32 to a network in float64.
            rounded = solve(coarser) if coarser.eps != problem.eps else answer
            answer = rounded if rounded.status is Status.RECOVERED else answer
        if answer.status is not Status.RECOVERED:
            whole = with_all_layers(problem, leak, network)
            answer = answer if whole is None else _better(solve(whole), answer)
        if answer.status is not Status.RECOVERED:
            return answer
        return without_second_example(answer, leak, network)

    def _batch(
        self,
        leak: GradientLeak,
        network: Network,
        generator: torch.Generator,
        solve: Solve,
    ) -> LabelRecovery:
        """Try the last layer's rays, and where they don't show all examples, hidden layers' masks.

        Raises:
            NotApplicable: neither can work.
        """
        try:
            rays = split_batch(leak, network, generator)
            answer = rays.answer([solve(part) for part in rays.problems])
            if answer.status is Status.RECOVERED:
                return answer
            no_rays = answer.reason
        except NotApplicable as reason:
            answer, no_rays = None, str(reason)
        try:
            other = answer_by_masks(leak, network, generator, solve, self.tolerance)
        except NotApplicable as no_masks:
            if answer is not None:
                return answer
            raise NotApplicable(f"{no_rays}; {no_masks}") from no_masks
        if answer is None or _recovered(other) > _recovered(answer):
            return other
        return answer


def _better(one: LabelRecovery, other: LabelRecovery) -> LabelRecovery:
    """Return an answer that is RECOVERED, if it lies within the bar of one that is too wide."""
    new, old = one.examples[0], other.examples[0]
    if one.status is not Status.RECOVERED or new.label is None or old.label is None:
        return other
    away, bar = float((new.label - old.label).abs().max()), old.label_bar or 0.0
    return one if away <= bar <= WIDEST_BAR else other


def _recovered(answer: LabelRecovery) -> int:
    return answer.statuses.count(Status.RECOVERED)


def solve_one(
    problem: Problem,
    *,
    models: list[LabelModel],
    unknown: frozenset[Unknown],
    tolerance: float,
    is_nonnegative: Callable[[], bool],
) -> LabelRecovery:
    """Find λ and the label of one example.

    Args:
        problem: `α = c λ (p(λ) − y)`.
        models: of labels, the simplest first.
        unknown: what the attacker doesn't know.
        tolerance: L∞ error that RECOVERED stays below.
        is_nonnegative: says whether features are never negative; asked only where it matters.
    """
    scan = find_roots(view_few(problem, ŷ, φ), is_nonnegative)
    tried = [fits_at(problem, models, Root(λ, 1 / λ)) for λ in scan.roots.tolist()]
    is_explained = any(root.explaining for root in tried)
    if Unknown.GRADIENT_SCALE in unknown and (problem.is_noisy or not is_explained):
        given = None if problem.bias is None else scan.roots
        scaled = scaled_roots(problem, scan.signs, given)
        tried += [fits_at(problem, models, root, is_scaled=True) for root in scaled]
    plausible = [label_at(problem, models[-1], Root(λ, 1 / λ)) for λ in scan.between.tolist()]
    return decide(
        problem,
        [root for root in tried if root.fits],
        unknown=unknown,
        tolerance=tolerance,
        certificate=scan.certificate,
        plausible=plausible,
    )


def fits_at(
    problem: Problem, models: list[LabelModel], root: Root, *, is_scaled: bool = False
) -> Tried:
    """Fit the label models at a root; without noise, until one explains the gradient."""
    fits: list[Fit] = []
    explaining: list[Fit] = []
    for model in models:
        fit = fit_label(problem, model, root, is_scaled=is_scaled)
        if fit is None:
            continue
        fits.append(fit)
        if explains(problem, fit):
            explaining.append(fit)
            if fit.surplus >= 1 and not problem.is_noisy:
                break
    return Tried(fits, explaining)
