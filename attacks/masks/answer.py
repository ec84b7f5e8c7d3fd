"""The answers on a batch whose examples are all found: each solved, then held against the others.

An example's label may be explained by what it isn't: one of several that share an input, another
loss. So its claim is taken back where the way back through the network contradicts it, or where it
asks for another factor on the gradient than the others do, by more than its error bar.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attacks.answers import Augmentation, ExampleLabel, LabelRecovery, Status, known, without_claim
from attacks.dense.network import FullyConnected
from attacks.masks.common_factor import (
    Factor,
    Solve,
    common_factor,
    measured_factor,
    solve_under,
)
from attacks.masks.common_label import CommonLabels, common_labels
from attacks.masks.examples import WRONG_SHARE, Examples, Parts, examples_of
from attacks.numerics.least_squares import BAR
from attacks.numerics.softmax import softmax
from attacks.one_example.problem import OWN_EPS, Problem
from attacks.victim.gradients import Array, as_double, as_numpy
from attacks.victim.network import Network

SAME_FACTOR, MOST_APART = 1e-2, 0.2
"""By how much the logarithms of the factors on the gradient that examples show may differ: no less,
and however uncertain they are, no more: of inputs that two examples share they double."""
UNSEEN = "its input is another example's, or too near to it: the gradient holds their sum"
NOT_THEIRS = (
    "the last layer's gradient isn't that of the examples found below it: layers' gradients come "
    "from different examples, or were changed one by one"
)
NO_RETURN = (
    "its label, handed down the network, doesn't give its part of layer {!r}'s gradient: entries "
    "or layers were changed, or the loss is another one"
)
SAME_MASK = (
    "it turns on the same units as another example, and the layer's gradient leaves open how their "
    "parts are divided"
)
SHARED_INPUT = (
    "no label of one example explains its part of the gradient: several examples share its input, "
    "and the gradient holds their sum"
)
OTHER_FACTOR = (
    "its label fits a gradient {:.3g} times as large as that of the others: several examples share "
    "its input, or the loss is another one"
)


@dataclass(frozen=True, eq=False)
class TakenApart:
    """A batch whose examples are all found, each with its rank-one problem.

    Args:
        parts: theirs of the gradient of the layer that shows them.
        chain: from that layer to the logits.
        size: B.
        examples: their way to the last layer.
    """

    parts: Parts
    chain: FullyConnected
    size: int
    examples: Examples

    @classmethod
    def of(cls, parts: Parts, chain: FullyConnected, size: int) -> TakenApart:
        """Follow the examples up a chain.

        Raises:
            NotApplicable: see `examples_of`.
        """
        return cls(parts, chain, size, examples_of(parts, chain, size))

    def problems(self, network: Network) -> list[Problem]:
        """Return the last layer's problem of each example, `e_b x_bᵀ`."""
        return [self._problem(network, row) for row in range(len(self.parts.inputs))]

    def _problem(self, network: Network, row: int) -> Problem:
        found, head = self.examples, self.chain.layers[-1]
        feature, bias, offset = found.features[row], None, None
        if not found.has_scale and network.head.bias is not None:
            offset = as_double(network.head.bias)
        if found.has_scale:  # as if by a bias of 0, where the last layer has none
            bias = as_double(network.head.bias) if head.has_bias else np.zeros(len(head.weight))
            feature = feature if head.has_bias else np.append(feature, 1.0)
        size = float(np.linalg.norm(feature))
        alpha = size * found.mixtures[row]
        drift = float(alpha.sum())
        alpha = alpha - alpha.mean()
        error = max(float(found.errors[row]), OWN_EPS)
        sigma = float(np.linalg.norm(alpha)) * error / np.sqrt(len(feature))
        return Problem(
            alpha,
            feature / size,
            as_numpy(network.head.weight),
            bias,
            sigma,
            sigma * self.parts.rounding_share,
            np.hypot(size * found.spread[row], OWN_EPS * np.linalg.norm(alpha)),
            error * np.abs(feature) / size,
            max(head.eps, OWN_EPS),
            drift,
            head.is_coarse,
            offset,
        )

    def answer(self, network: Network, solve: Solve, tolerance: float) -> LabelRecovery:
        """Solve each example's problem, and put the answers together, the recovered ones first.

        Args:
            network: a view of the leak's model.
            solve: finds the label of one example; with a factor of 1 on the gradient, or any.
            tolerance: L∞ error of a label that RECOVERED stays below.
        """
        problems = self.problems(network)
        solved = [solve(problem) for problem in problems]
        rows = [dataclasses.replace(one.examples[0], label_std=None) for one in solved]
        factors = [one.gradient_scale for one in solved]
        measures = [measured_factor(*each) for each in zip(problems, solved, strict=True)]
        common = self._common_labels(tolerance)
        if common is not None and not all(row.status is Status.RECOVERED for row in rows):
            rows = [_relabelled(*each, common) for each in zip(rows, common.labels, strict=True)]
            factors = [common.factor] * len(rows)
        elif self.examples.has_scale and (shared := common_factor(measures)) is not None:
            for number, row in enumerate(rows):
                if row.status is not Status.RECOVERED:
                    again = solve_under(shared, problems[number], row, solve, tolerance)
                    if again is not None:
                        rows[number] = again
                        factors[number] = factors[number] or shared.value
        factor = _common_factor(factors)
        shown = [
            None if own is None else Factor(own, BAR * measure.std if measure else 0.0)
            for own, measure in zip(factors, measures, strict=True)
        ]
        checked = [
            self._checked(number, row, own, factor)
            for number, (row, own) in enumerate(zip(rows, shown, strict=True))
        ]
        checked.sort(key=lambda row: row.status is not Status.RECOVERED)
        missing = ExampleLabel(Status.NOT_IDENTIFIABLE, UNSEEN)
        answers = checked + [missing] * (self.size - len(rows))
        return LabelRecovery.of(answers, gradient_scale=factor)

    def _common_labels(self, tolerance: float) -> CommonLabels | None:
        """Return labels of one smoothing, if they explain all examples."""
        found, head = self.examples, self.chain.layers[-1]
        is_complete = len(self.parts.inputs) == self.size
        if not (found.has_scale and is_complete and not self.parts.noise):
            return None
        p = softmax(found.features @ head.weight.T)
        common = common_labels(p, found.mixtures, np.hypot(found.spread, head.eps))
        return common if common is not None and common.bar <= tolerance else None

    def _checked(
        self, number: int, row: ExampleLabel, own: Factor | None, factor: float | None
    ) -> ExampleLabel:
        """Take a claim back that the way back, or the other examples, contradict."""
        found, reason = self.examples, None
        wrong = float(found.returns[number])
        if not found.is_whole:
            reason = NOT_THEIRS
        elif not self.parts.is_clear[number]:
            reason = SAME_MASK
        elif wrong > WRONG_SHARE:
            reason = NO_RETURN.format(self.chain.layers[0].name)
        elif own is None or factor is None or not _agree(own.value, factor, own.bar):
            ratio = math.nan if own is None or factor is None else own.value / factor
            reason = OTHER_FACTOR.format(ratio)
        elif len(self.parts.inputs) < self.size and not _agree(factor, 1.0):
            reason = UNSEEN
        if row.status is not Status.RECOVERED and len(self.parts.inputs) < self.size:
            return dataclasses.replace(row, reason=SHARED_INPUT)
        if reason is None or row.status is not Status.RECOVERED:
            return dataclasses.replace(row, certificate=known(1 / max(wrong, 1 / found.units)))
        return without_claim(row, reason)


def _relabelled(row: ExampleLabel, label: Array, common: CommonLabels) -> ExampleLabel:
    kind = "label-smoothing" if common.smoothing > common.bar else "hard"
    smoothing = common.smoothing if kind == "label-smoothing" else 0.0
    return dataclasses.replace(
        row,
        status=Status.RECOVERED,
        reason=None,
        label=torch.from_numpy(label),
        label_bar=common.bar,
        augmentation=Augmentation(kind, smoothing),
        residual=common.residual,
        candidates=None,
    )


def _common_factor(factors: Sequence[float | None]) -> float | None:
    """Return the factor on the gradient on which most examples agree."""
    known = np.array([factor for factor in factors if factor is not None])
    if not len(known):
        return None
    near = np.abs(known / known[:, None] - 1) <= SAME_FACTOR
    return float(np.median(known[near[int(near.sum(axis=1).argmax())]]))


def _agree(own: float, factor: float, bar: float = 0.0) -> bool:
    """Say whether a factor that has an error bar, relative, is another one."""
    return abs(math.log(own / factor)) <= min(max(bar, SAME_FACTOR), MOST_APART)
