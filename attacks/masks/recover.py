"""A batch taken apart by masks: which hidden layer shows its examples."""

from __future__ import annotations

import torch

from attacks.answers import LabelRecovery
from attacks.dense.network import FullyConnected
from attacks.masks.answer import MaskBatch
from attacks.masks.common_factor import Solve
from attacks.masks.equation import MaskEquation
from attacks.masks.examples import examples_of
from attacks.masks.find import find_pairs
from attacks.masks.partial import partial_answer
from attacks.masks.polish import Pair
from attacks.masks.scale import with_scale
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.loss import OTHER_LOSS, is_of_another_loss
from attacks.victim.network import Network

NONE_FOUND = "the masks of layer {!r} show none of {} examples"


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
            chain = with_scale(chain)
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


def _require_known_dropout(chain: FullyConnected) -> None:
    """Raise unless all that dropout did above is in the first layer's masks."""
    drops = [layer for layer, share in zip(chain.layers, chain.kept, strict=False) if share < 1]
    if not drops or (drops == [chain.layers[0]] and chain.activations[0].low == 0):
        return
    raise NotApplicable(
        f"dropout behind layer {drops[-1].name!r} isn't part of the masks of layer "
        f"{chain.layers[0].name!r}: those of a ReLU right before it would be"
    )
