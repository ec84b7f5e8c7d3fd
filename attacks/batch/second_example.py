"""Is there a second example behind a gradient that is said to be one's?

The last layer may not show it: where two examples have nearly the same feature there, as deep
networks give them, its gradient has rank one, and the label that explains it is their mixture. A
linear layer below sees the images themselves. Of its gradient `∂L/∂W = Σ_b δ_b a_bᵀ` some rows are
taken, and what they have beside their leading direction: of a second example that is of rank one
again, and larger than noise; of noise, pruning or quantisation it isn't of rank one.
"""

from __future__ import annotations

import numpy as np
import torch

from attacks.answers import LabelRecovery, without_claim
from attacks.batch.subspace import signal_rank
from attacks.one_example.problem import Problem
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.gradients import has_layer_gradient
from attacks.victim.network import Network, parameter_name
from attacks.victim.rank import CLEARLY, largest_of_rounding

ROWS = 64
"""Rows of a layer's gradient that are looked at, the largest."""
ALIKE, BEYOND_NOISE = 0.5, 1.5
"""Share of what is left that a second example's own direction holds: at least, and in units of what
noise gives its largest direction."""


def one_example(leak: GradientLeak, network: Network) -> Problem | None:
    """Return the last layer's problem of a single example; None for a batch, told or by its rank.

    Raises:
        NotApplicable: one example is told, and the gradient isn't that of one.
    """
    if leak.batch_size == 1:
        return Problem.of(leak, network)
    if leak.batch_size is not None:
        return None
    try:
        layer = Problem.of(leak, network)
    except NotApplicable:
        return None
    if not layer.is_noisy:
        return layer
    # Other examples may pass for noise, but the noise isn't of low rank, in one layer at least.
    names = [network.head_name, *reversed(network.executed[:-1])]
    ranks = (signal_rank(leak, network, name) for name in names)
    return layer if next(filter(None, ranks), 1) == 1 else None


def without_second_example(
    answer: LabelRecovery, leak: GradientLeak, network: Network
) -> LabelRecovery:
    """Return one example's answer, its claim taken back where a layer shows a second one.

    Args:
        answer: that is RECOVERED.
        leak: said to be of one example.
        network: a view of its model.
    """
    found = second_example(leak, network)
    if found is None:
        return answer
    mixture = "where two have nearly the same last feature, the label is a mixture of theirs"
    return LabelRecovery.of(
        [without_claim(answer.examples[0], f"{found}: {mixture}")],
        gradient_scale=answer.gradient_scale,
    )


def second_example(leak: GradientLeak, network: Network) -> str | None:
    """Say where there are two examples, or why nothing would tell; None without a sign of them.

    Args:
        leak: said to be of one example.
        network: a view of its model.
    """
    if leak.batch_size is None and network.head.out_features == 2:
        return (
            "the batch size is unknown, and of two classes any batch leaves a gradient of rank one"
        )
    for name in network.executed:
        if name == network.head_name or not has_layer_gradient(leak, network, name):
            continue
        if _has_rank_two(leak, parameter_name(name, "weight")):
            return f"the gradient of layer {name!r} holds more than one example"
    return None


def _has_rank_two(leak: GradientLeak, name: str) -> bool:
    gradient = leak.gradients[name]
    sizes = torch.linalg.vector_norm(gradient.float(), dim=1)
    chosen = sizes.topk(min(ROWS, len(sizes))).indices
    rows = gradient[chosen].double().numpy()
    if not np.isfinite(rows).all() or not rows.any():
        return False
    values = np.linalg.svd(rows, compute_uv=False)
    if len(values) < 3:
        return False
    variance = leak.rounding(name, chosen).square().numpy()
    largest = largest_of_rounding(variance)
    height, width = len(values) - 1, rows.shape[1] - 1
    share = (np.sqrt(height) + np.sqrt(width)) ** 2 / (height * width)
    alike = max(ALIKE, BEYOND_NOISE * share) * float(np.square(values[1:]).sum())
    return bool(values[1] > CLEARLY * largest and values[1] ** 2 > alike)
