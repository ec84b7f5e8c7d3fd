"""A batch taken apart by masks: which hidden layer shows its examples."""

from __future__ import annotations

from collections.abc import Callable

import torch

from attacks.answers import LabelRecovery, Status
from attacks.dense.network import FullyConnected
from attacks.masks.answer import TakenApart
from attacks.masks.common_factor import Solve
from attacks.masks.equation import MaskEquation
from attacks.masks.examples import Parts
from attacks.masks.find import find_pairs
from attacks.masks.partial import partial_answer
from attacks.masks.polish import Pair
from attacks.masks.rays import parts_by_rays
from attacks.masks.scale import with_scale
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.loss import OTHER_LOSS, is_of_another_loss
from attacks.victim.network import Network

FEW_UNITS = 4.0
"""Live units for each unknown of a pair below which the zeros of inputs are asked first."""
Answer = Callable[[Parts, FullyConnected], LabelRecovery]
Partial = tuple[MaskEquation, tuple[Pair, ...], FullyConnected]
NONE_FOUND = "the masks of layer {!r} show none of {} examples"


def answer_by_masks(
    leak: GradientLeak,
    network: Network,
    generator: torch.Generator,
    solve: Solve,
    tolerance: float,
) -> LabelRecovery:
    """Find examples in the gradient of a hidden layer, and solve the problem of each.

    By a layer's masks, or by the zeros of its inputs, whichever there are more of: layers are tried
    until one shows all examples; else the one whose masks show most answers for these.

    Args:
        leak: of one step on a batch; its size may be unknown.
        network: a view of the leak's model.
        generator: draws starts.
        solve: finds the label of one example; with a factor of 1 on the gradient, or any.
        tolerance: L∞ error of a label that RECOVERED stays below.

    Raises:
        NotApplicable: no hidden layer has masks that would tell examples apart, or none shows any.
    """
    whole, told = hidden_layers(leak, network), leak.batch_size
    if is_of_another_loss(whole.layers[-1].gradient):
        raise NotApplicable(OTHER_LOSS)

    def answer(parts: Parts, chain: FullyConnected) -> LabelRecovery:
        apart = TakenApart.of(parts, chain, told or len(parts.inputs))
        return apart.answer(network, solve, tolerance)

    order = _in_order(whole, told)
    are_few = _units_each(whole, order[0], told) < FEW_UNITS
    found = _by_rays(whole, network, told, generator, answer) if are_few else None
    if found is not None:
        return found
    found, most, reason = _by_masks(whole, order, told, generator, answer)
    if found is None and not are_few:
        found = _by_rays(whole, network, told, generator, answer)
    if found is not None:
        return found
    if most is None:
        raise NotApplicable(reason)
    return partial_answer(*most, told or most[0].size)


def _by_masks(
    whole: FullyConnected,
    order: list[int],
    told: int | None,
    generator: torch.Generator,
    answer: Answer,
) -> tuple[LabelRecovery | None, Partial | None, str]:
    """Return the answer of the first layer whose masks show all examples, or the most that are.

    Beside it the reason of the first layer that shows none.
    """
    reasons: list[str] = []
    most: Partial | None = None
    for index in order:
        chain = whole.above_layer(index)
        try:
            _require_known_dropout(chain)
            equation = MaskEquation.of(chain, 0, told)
            chain = with_scale(chain)
            pairs = find_pairs(equation, chain, 0, generator)
            if len(pairs) == equation.size:
                parts = Parts.of_pairs(equation, pairs, chain, told or equation.size)
                return answer(parts, chain), None, ""
            clear = tuple(pair for pair in pairs if pair.is_clear)
            if len(clear) > (len(most[1]) if most else 0):
                most = equation, clear, chain
            reasons.append(NONE_FOUND.format(equation.source.name, equation.size))
        except NotApplicable as reason:
            reasons.append(str(reason))
    return None, most, reasons[0]


def _by_rays(
    whole: FullyConnected,
    network: Network,
    told: int | None,
    generator: torch.Generator,
    answer: Answer,
) -> LabelRecovery | None:
    """Return the answer of the first layer whose inputs' zeros show all examples, the widest first.

    None where none does, or what it shows isn't confirmed.
    """
    hidden = range(len(whole.layers) - 1)
    for index in sorted(hidden, key=lambda i: -whole.layers[i].weights.shape[1]):
        chain = whole.above_layer(index)
        if chain.kept and min(chain.kept) < 1:
            continue  # which outputs dropout left out behind the layer, no ray says
        try:
            chain = with_scale(chain)
            found = answer(parts_by_rays(chain, network, told, generator), chain)
        except NotApplicable:
            continue
        if Status.RECOVERED in found.statuses:
            return found
    return None


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
    hidden = range(len(whole.layers) - 1)
    return sorted(hidden, key=lambda index: _units_each(whole, index, told), reverse=True)


def _units_each(whole: FullyConnected, index: int, told: int | None) -> float:
    """Return how many live units a hidden layer has for each unknown of a pair."""
    gradient, above = whole.layers[index].gradient, whole.layers[index + 1].gradient
    size = told or min(*gradient.shape, *above.shape)
    is_last = index + 2 == len(whole.layers)
    return float(gradient.any(axis=1).sum() / (size + min(size, len(above) - is_last)))


def _require_known_dropout(chain: FullyConnected) -> None:
    """Raise unless all that dropout did above is in the first layer's masks."""
    drops = [layer for layer, share in zip(chain.layers, chain.kept, strict=False) if share < 1]
    if not drops or (drops == [chain.layers[0]] and chain.activations[0].low == 0):
        return
    raise NotApplicable(
        f"dropout behind layer {drops[-1].name!r} isn't part of the masks of layer "
        f"{chain.layers[0].name!r}: those of a ReLU right before it would be"
    )
