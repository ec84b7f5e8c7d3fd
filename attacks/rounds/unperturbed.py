"""The rounds that a defense left alone, where it perturbs gradients in some rounds only.

[ours] Outpost (F. Wang, E. Hugh, B. Li, INFOCOM 2023) perturbs with a probability that falls over
rounds. Which rounds it perturbed is a draw, and no schedule tells it, but the update does: without
noise and pruning the gradient of a linear layer is a sum over n examples, of rank n at most, and
entries that are changed one by one leave it of full rank. One round that went unperturbed gives all
that is to be had of examples which a client uses again: the others would add noise.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from attacks.facts import Decaying
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.gradients import has_layer_gradient
from attacks.victim.kept import kept_with
from attacks.victim.network import Network, parameter_name
from attacks.victim.rank import rank_beyond


def without_perturbed(leak: GradientLeak) -> GradientLeak:
    """Return a leak of several rounds without those that were perturbed; see `taken_rounds`.

    Args:
        leak: with the earlier ones of its client, or none.
    """
    if leak.earlier is None or not _is_told(leak):
        return leak
    every = (*leak.earlier, leak)

    def find() -> GradientLeak:
        taken = taken_rounds(leak)
        if len(taken) == len(every) > 1:
            return leak
        *earlier, last = (every[index] for index in taken)
        return dataclasses.replace(last, earlier=tuple(earlier) or None)

    return kept_with(leak, "_without_perturbed", find)


def taken_rounds(leak: GradientLeak) -> list[int]:
    """Return the positions, from the earliest, of the rounds that tell most.

    All, unless it is told that a defense perturbs some rounds alone. Then of those that it didn't
    the one of the largest gradient, which is rounded the least; where noise is told beside, all of
    them. Where it perturbed every round, all again.

    Args:
        leak: with the earlier ones of its client, or none.
    """
    every = (*(leak.earlier or ()), leak)
    everything = list(range(len(every)))
    if not _is_told(leak):
        return everything
    whole = [index for index, one in enumerate(every) if is_unperturbed(one)]
    if not whole or leak.told.noise_std:
        return whole or everything
    return [max(whole, key=lambda index: _size(every[index]))]


def is_unperturbed(leak: GradientLeak) -> bool:
    """Say whether the layers' gradients are sums over the examples, but for rounding and noise.

    False also where nothing tells: an untold number of examples, or no linear layer wide enough.
    """
    count, noise = leak.steps.distinct, leak.told.noise_std or 0.0
    if count is None:
        return False
    try:
        network = Network.of(leak)
    except NotApplicable:
        return False
    ranks = []
    for name in network.executed[: 1 if leak.local_steps > 1 else None]:
        if not has_layer_gradient(leak, network, name):
            continue
        weight = parameter_name(name, "weight")
        gradient = leak.gradients[weight].double().numpy()
        live = np.ix_(gradient.any(axis=1), gradient.any(axis=0))
        if min(gradient[live].shape) <= count or not np.isfinite(gradient).all():
            continue
        variance = leak.rounding(weight).numpy()[live] ** 2
        variance = variance + (noise / (leak.lr or 1.0)) ** 2
        ranks.append(rank_beyond(gradient[live], variance))
    return bool(ranks) and max(ranks) <= count


def _is_told(leak: GradientLeak) -> bool:
    """Say whether some rounds may have gone unperturbed, of examples that all rounds share.

    Mixes are drawn anew in each round: another round's are other examples.
    """
    is_decaying = any(isinstance(fact, Decaying) for fact in leak.knowledge)
    return is_decaying and "mixup" not in (leak.told.type or "")


def _size(leak: GradientLeak) -> float:
    return float(sum(part.double().square().sum() for part in leak.gradients.values()))
