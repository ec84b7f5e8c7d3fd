"""A batch taken apart by masks: the layer that shows all examples, and their answers together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attacks.answers import Augmentation, ExampleLabel, LabelRecovery, Status, known, without_claim
from attacks.dense.network import FullyConnected
from attacks.masks.common_factor import Solve, common_factor, solve_under
from attacks.masks.common_label import CommonLabels, common_labels
from attacks.masks.equation import MaskEquation
from attacks.masks.examples import WRONG_SHARE, Examples, examples_of
from attacks.masks.find import find_pairs
from attacks.masks.partial import partial_answer
from attacks.masks.polish import Pair
from attacks.numerics.softmax import softmax
from attacks.one_example.problem import OWN_EPS, Problem
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.gradients import Array, as_double, as_numpy
from attacks.victim.loss import OTHER_LOSS, is_of_another_loss
from attacks.victim.network import Network

SAME_FACTOR = 1e-2
"""By how much the factors on the gradient that examples show may differ."""
NONE_FOUND = "the masks of layer {!r} show none of {} examples"
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


def answer_by_masks(
    leak: GradientLeak,
    network: Network,
    generator: torch.Generator,
    solve: Solve,
    tolerance: float,
) -> LabelRecovery:
    """Find examples in the gradient of a hidden layer, and solve the problem of each.

    Layers are tried in the order of their live units for each unknown of a pair, until one shows
    all examples; else the one that shows most answers for these.

    Args:
        leak: of one step on a batch; its size may be unknown.
        network: a view of the leak's model.
        generator: draws starts.
        solve: finds the label of one example; with a factor of 1 on the gradient, or any.
        tolerance: L∞ error of a label that RECOVERED stays below.

    Raises:
        NotApplicable: no hidden layer has masks that would tell examples apart, or none shows any.
    """
    whole = hidden_layers(leak, network)
    if is_of_another_loss(whole.layers[-1].gradient):
        raise NotApplicable(OTHER_LOSS)
    reasons: list[str] = []
    most: tuple[MaskEquation, tuple[Pair, ...], FullyConnected] | None = None
    for index in _in_order(whole, leak.batch_size):
        chain = whole.above_layer(index)
        try:
            _require_known_dropout(chain)
            equation = MaskEquation.of(chain, 0, leak.batch_size)
            _require_scale(chain)
            pairs = find_pairs(equation, chain, 0, generator)
            batch = leak.batch_size or equation.size
            if len(pairs) == equation.size:
                examples = examples_of(equation, pairs, chain, batch)
                found = MaskBatch(equation, pairs, chain, batch, examples)
                return found.answer(network, solve, tolerance)
            clear = tuple(pair for pair in pairs if pair.is_clear)
            if len(clear) > (len(most[1]) if most else 0):
                most = equation, clear, chain
            reasons.append(NONE_FOUND.format(equation.source.name, equation.size))
        except NotApplicable as reason:
            reasons.append(str(reason))
    if most is None:
        raise NotApplicable(reasons[0])
    return partial_answer(*most, leak.batch_size or most[0].size)


def hidden_layers(leak: GradientLeak, network: Network) -> FullyConnected:
    """Return the longest chain of linear layers that ends with the last one, at least two.

    Raises:
        NotApplicable: there is but one.
    """
    for name in network.executed[:-1]:
        try:
            return FullyConnected.above(leak, network, name)
        except NotApplicable as reason:
            last = reason
    if len(network.executed) > 1:
        raise last
    raise NotApplicable("the network has one linear layer; the masks of hidden ones are missing")


def _in_order(whole: FullyConnected, told: int | None) -> list[int]:
    """Return the indices of hidden layers, those of most units for each unknown first."""

    def units_each(index: int) -> float:
        gradient, above = whole.layers[index].gradient, whole.layers[index + 1].gradient
        size = told or min(*gradient.shape, *above.shape)
        is_last = index + 2 == len(whole.layers)
        return float(gradient.any(axis=1).sum() / (size + min(size, len(above) - is_last)))

    return sorted(range(len(whole.layers) - 1), key=units_each, reverse=True)


def _require_scale(chain: FullyConnected) -> None:
    """Raise unless a bias, or a network without any above, gives examples their scale."""
    first, *above = chain.layers
    if first.has_bias:
        return
    if any(layer.has_bias for layer in above) or not chain.is_homogeneous:
        raise NotApplicable(
            f"layer {first.name!r} has no bias, and what stands above isn't homogeneous: nothing "
            "gives an example its scale"
        )


def _require_known_dropout(chain: FullyConnected) -> None:
    """Raise unless all that dropout did above is in the first layer's masks."""
    drops = [layer for layer, share in zip(chain.layers, chain.kept, strict=False) if share < 1]
    if not drops or (drops == [chain.layers[0]] and chain.activations[0].low == 0):
        return
    raise NotApplicable(
        f"dropout behind layer {drops[-1].name!r} isn't part of the masks of layer "
        f"{chain.layers[0].name!r}: those of a ReLU right before it would be"
    )


@dataclass(frozen=True, eq=False)
class MaskBatch:
    """A batch whose examples are all found, each with its rank-one problem.

    Args:
        equation: of the layer that shows them.
        pairs: the examples there.
        chain: from that layer to the logits.
        size: B.
        examples: their way to the last layer.
    """

    equation: MaskEquation
    pairs: tuple[Pair, ...]
    chain: FullyConnected
    size: int
    examples: Examples

    def problems(self, network: Network) -> list[Problem]:
        """Return the last layer's problem of each example, `e_b x_bᵀ`."""
        return [self._problem(network, row) for row in range(len(self.pairs))]

    def _problem(self, network: Network, row: int) -> Problem:
        found, head = self.examples, self.chain.layers[-1]
        feature, bias = found.features[row], None
        if self.has_scale:  # as if by a bias of 0, where the last layer has none
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
            sigma * self._rounding_share(),
            np.hypot(size * found.spread[row], OWN_EPS * np.linalg.norm(alpha)),
            error * np.abs(feature) / size,
            max(head.eps, OWN_EPS),
            drift,
            head.is_coarse,
        )

    def answer(self, network: Network, solve: Solve, tolerance: float) -> LabelRecovery:
        """Solve each example's problem, and put the answers together, the recovered ones first.

        Args:
            network: a view of the leak's model.
            solve: see `answer_by_masks`.
            tolerance: L∞ error of a label that RECOVERED stays below.
        """
        problems = self.problems(network)
        solved = [solve(problem) for problem in problems]
        rows = [
            self._with_feature(*each) for each in zip(self.examples.features, solved, strict=True)
        ]
        factors = [one.gradient_scale for one in solved]
        common = self._common_labels(tolerance)
        if common is not None and not all(row.status is Status.RECOVERED for row in rows):
            rows = [_relabelled(*each, common) for each in zip(rows, common.labels, strict=True)]
            factors = [common.factor] * len(rows)
        elif self.has_scale and (shared := common_factor(problems, solved)) is not None:
            for number, row in enumerate(rows):
                if row.status is not Status.RECOVERED:
                    again = solve_under(shared, problems[number], row, solve, tolerance)
                    if again is not None:
                        rows[number] = again
                        factors[number] = factors[number] or shared.value
        factor = _common_factor(factors)
        checked = [
            self._checked(number, row, own, factor)
            for number, (row, own) in enumerate(zip(rows, factors, strict=True))
        ]
        checked.sort(key=lambda row: row.status is not Status.RECOVERED)
        missing = ExampleLabel(Status.NOT_IDENTIFIABLE, UNSEEN)
        answers = checked + [missing] * (self.size - len(rows))
        return LabelRecovery.of(answers, gradient_scale=factor)

    def _rounding_share(self) -> float:
        """Return the share of errors that float rounding explains."""
        both = float(np.mean(self.equation.source.rounding**2))
        return float(np.sqrt(max(1 - self.equation.noise**2 / both, 0.0)))

    @property
    def has_scale(self) -> bool:
        """Whether a bias gives the examples their scale."""
        return self.chain.layers[0].has_bias

    def _with_feature(self, feature: Array, one: LabelRecovery) -> ExampleLabel:
        """Return the answer to a problem, with the feature that no label is needed for."""
        [row] = one.examples
        row = dataclasses.replace(row, label_std=None)
        if row.feature is not None or not self.has_scale:
            return row
        width = self.chain.layers[-1].weight.shape[1] - self.chain.layers[-1].has_bias
        return dataclasses.replace(row, feature=torch.from_numpy(feature[:width]))

    def _common_labels(self, tolerance: float) -> CommonLabels | None:
        """Return labels of one smoothing, if they explain all examples."""
        found, head = self.examples, self.chain.layers[-1]
        is_complete = len(self.pairs) == self.size
        if not (self.has_scale and is_complete and not self.equation.noise):
            return None
        p = softmax(found.features @ head.weight.T)
        common = common_labels(p, found.mixtures, np.hypot(found.spread, head.eps))
        return common if common is not None and common.bar <= tolerance else None

    def _checked(
        self, number: int, row: ExampleLabel, own: float | None, factor: float | None
    ) -> ExampleLabel:
        """Take a claim back that the way back, or the other examples, contradict."""
        found, reason = self.examples, None
        wrong = float(found.returns[number])
        if not found.is_whole:
            reason = NOT_THEIRS
        elif not self.pairs[number].is_clear:
            reason = SAME_MASK
        elif wrong > WRONG_SHARE:
            reason = NO_RETURN.format(self.equation.source.name)
        elif not _agrees(own, factor):
            reason = OTHER_FACTOR.format((own or math.nan) / (factor or math.nan))
        elif len(self.pairs) < self.size and not _agrees(factor, 1.0):
            reason = UNSEEN
        if row.status is not Status.RECOVERED and len(self.pairs) < self.size:
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


def _agrees(own: float | None, factor: float | None) -> bool:
    return own is not None and factor is not None and abs(own / factor - 1) <= SAME_FACTOR
