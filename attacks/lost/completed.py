"""A leak with the entries put back that a defense says it left out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attacks.answers import LabelRecovery, Status
from attacks.dense.network import FullyConnected
from attacks.facts import LostColumns, Pruned
from attacks.lost.batch import complete_batch
from attacks.lost.one_example import complete_one
from attacks.lost.sent import Mask
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.gradients import Array, Layer, parameters_of
from attacks.victim.kept import kept_with
from attacks.victim.network import Network
from attacks.victim.pixel_map import PixelMap


@dataclass(frozen=True, eq=False)
class Completion:
    """A leak that is whole again.

    Args:
        leak: with what was left out.
        inputs: (B, n), of the first layer, that this is made of; of any positive scale each.
        errors: (B,), what isn't known of them, relative; infinite where something is open.
    """

    leak: GradientLeak
    inputs: Tensor
    errors: Tensor

    def errors_of(self, a: Tensor) -> Tensor:
        """Return the errors (N,) of first inputs (N, n), by which of its own they are.

        Of one that is none of them it is infinite, and where nothing was completed zero.
        """
        if not len(self.inputs):
            return torch.zeros(len(a), dtype=torch.float64)
        unit = a / a.norm(dim=1, keepdim=True)
        own = self.inputs / self.inputs.norm(dim=1, keepdim=True)
        off, which = torch.cdist(unit, own).min(dim=1)
        return torch.where(off <= SAME_INPUT, self.errors[which], torch.inf)


def with_doubt(answer: LabelRecovery, error: float) -> LabelRecovery:
    """Return an answer on a completed leak that says so where it claims nothing.

    Args:
        answer: of an attack that takes the leak for whole.
        error: of the inputs that it was completed by, relative; infinite where some are open.
    """
    if answer.status is Status.RECOVERED or not answer.examples:
        return answer
    known = f"that err by {error:.1g}, relative" if np.isfinite(error) else "that are open in part"
    why = (
        f"what was left out of the gradient is found again by inputs {known}, which may be more "
        "than a test allows for"
    )
    examples = [
        example
        if example.status is Status.RECOVERED
        else dataclasses.replace(example, reason=f"{why}: {example.reason}")
        for example in answer.examples
    ]
    return LabelRecovery.of(examples, gradient_scale=answer.gradient_scale)


SAME_INPUT = 0.05
"""Distance of unit inputs up to which they are the same example's."""


def completed(leak: GradientLeak, generator: torch.Generator) -> Completion:
    """Return a leak with the entries put back in that a defense says it left out.

    Of one step of a fully connected network on a told number of examples, whose inputs are fixed by
    a bias or whose layers are homogeneous; any other leak comes back as it is. What was sent stays
    as it is. It is kept with the leak.

    Args:
        leak: what is attacked.
        generator: draws starts.
    """
    nothing = Completion(leak, torch.empty(0, 1, dtype=torch.float64), torch.empty(0))
    if not leak.told.has_lost_entries or leak.batch_size is None or leak.local_steps != 1:
        return nothing
    try:
        return kept_with(leak, "_completed", lambda: _completed(leak, generator))
    except NotApplicable:
        return nothing


def _completed(leak: GradientLeak, generator: torch.Generator) -> Completion:
    network = Network.of(leak)
    layers = FullyConnected.of(leak, network, may_vanish=True)
    if layers.kept or not (layers.layers[0].has_bias or layers.is_homogeneous):
        raise NotApplicable("nothing fixes the first layer's input")
    black = PixelMap.of(network, network.executed[0]).offset.flatten().numpy()
    sent = _sent(leak, network, layers)
    assert leak.batch_size is not None
    if leak.batch_size == 1:
        gradients, inputs, errors = complete_one(layers, black), np.empty((0, 1)), np.empty(0)
    else:
        try:
            gradients, inputs, errors = complete_batch(
                layers, sent, black, leak.batch_size, generator
            )
        except np.linalg.LinAlgError as reason:
            raise NotApplicable(f"the examples aren't linearly independent: {reason}") from reason
    whole = _with_gradients(leak, network, layers, gradients, sent)
    return Completion(whole, torch.from_numpy(inputs), torch.from_numpy(errors))


def _sent(leak: GradientLeak, network: Network, layers: FullyConnected) -> list[Mask]:
    """Return which entries of each layer's gradient came."""
    columns = {fact.layer for fact in leak.knowledge if isinstance(fact, LostColumns)}
    names = {network.head_name if name is None else name for name in columns}
    is_pruned = any(isinstance(fact, Pruned) for fact in leak.knowledge)
    found = []
    for layer in layers.layers:
        there = np.ones(layer.gradient.shape, dtype=bool)
        if layer.name in names:
            there &= layer.gradient.any(axis=0)
        found.append(there & (layer.gradient != 0) if is_pruned else there)
    return found


def _with_gradients(
    leak: GradientLeak,
    network: Network,
    layers: FullyConnected,
    found: list[Array],
    sent: list[Mask],
) -> GradientLeak:
    gradients = dict(leak.gradients)
    for layer, predicted, there in zip(layers.layers, found, sent, strict=True):
        whole = np.where(there, layer.gradient, predicted)
        for name, part in zip(
            parameters_of(network, layer.name), _parts(layer, whole), strict=True
        ):
            came = gradients[name]
            filled = torch.from_numpy(np.ascontiguousarray(part)).reshape(came.shape).to(came)
            gradients[name] = filled
    return dataclasses.replace(leak, gradients=gradients)


def _parts(layer: Layer, gradient: Array) -> list[Array]:
    if not layer.has_bias:
        return [gradient]
    return [gradient[:, :-1], gradient[:, -1]]
