"""One epoch, step by step: at its own weights each example's part of the update is exact.

In one epoch an example is in one step alone, so its part of the first layer's update is
`d_b = c_t ω_t B_bᵀ e_b`, with `e_b = p_b − y_b`, and B_b what the layers above hand down from the
logits at that step's weights. At the first step these are the weights that were sent: the examples
whose d_b lies in the space of their `B_bᵀ` are the first batch, which gives the weights of the
second step, and so on. With a bias all scales are known; without any, masks don't depend on an
input's scale λ, and `y(λ) = p(λ z) − e / λ` is equal in all but its two largest entries.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from attacks.unrolled.problem import Update
from attacks.unrolled.simulation import Pass, Unknowns

WIDEST_FACTOR, SCANNED, ZOOMS = 6.0, 400, 4
"""Scales from what to what times the usual one; how many at once, and how often again between
neighbours."""


def peeled(update: Update, client: Unknowns, *, until: float = math.inf) -> tuple[Unknowns, float]:
    """Return labels, schedule and, without a bias, scales of one epoch's examples.

    Beside them how badly they fit, the mean over the examples; 1 for what is no example's.

    Args:
        update: of one epoch.
        client: its inputs in the right directions, with a bias at the right scales.
        until: misfit of an example from which those of later steps count as no examples.
    """
    simulation, optimizer = update.simulation, update.optimizer
    responses, sizes = optimizer.responses(update.steps), update.timetable.sizes.round()
    inputs, labels = client.inputs.clone(), client.labels.clone()
    if not update.has_bias:  # scanned around one scale, whatever the start's was
        usual = update.chain.layers[0].weight.shape[1] ** 0.5
        inputs *= usual / inputs.norm(dim=1, keepdim=True)
    parts = update.parts(inputs)
    shares = torch.zeros_like(client.shares)
    left = torch.ones(len(inputs), dtype=torch.bool)
    weights, buffers, unlike = simulation.weights, None, 0.0
    for step, size in enumerate(sizes.tolist()):
        known = Unknowns(inputs, labels, shares)
        probe = simulation.pass_of(weights, known, left.to(inputs) / size, left.nonzero()[:, 0])
        errors, misfits = _errors(probe, simulation.biases, parts[left] * size / responses[step])
        nearest = misfits.argsort()[: int(size)]
        shown = misfits[nearest].nan_to_num(1.0).clamp(max=1.0)
        unlike += float(shown.sum()) / len(inputs)
        if shown[-1] > until:
            return client, unlike + (int(left.sum()) - size) / len(inputs)
        for row in nearest.tolist():
            example = int(probe.used[row])
            factor = 1.0 if update.has_bias else _scale(probe.logits[row], errors[row])
            inputs[example] *= factor
            labels[example] = (factor * probe.logits[row]).softmax(dim=0) - errors[row] / factor
            if update.has_bias:
                labels[example] = probe.p[row] - errors[row]
            shares[step, example] = 1 / size
            left[example] = False
        known = Unknowns(inputs, labels, shares)
        taken = simulation.pass_of(weights, known, shares[step], shares[step].nonzero()[:, 0])
        weights, buffers = optimizer.step(weights, taken.gradients, buffers)
    return dataclasses.replace(client, inputs=inputs, labels=labels, shares=shares), unlike


def _errors(probe: Pass, biases: tuple[bool, ...], parts: Tensor) -> tuple[Tensor, Tensor]:
    """Return `p − y` (n, K) that parts (n, D) say, and how badly they fit, (n,)."""
    errors, misfits = [], []
    for row, part in enumerate(parts):
        back = probe.weights[-1]
        for index in range(len(probe.weights) - 1, 0, -1):
            back = back[:, : back.shape[1] - biases[index]] * probe.slopes[index - 1][row]
            back = back @ probe.weights[index - 1] if index > 1 else back
        back = back - back.mean(dim=0)
        found = torch.linalg.lstsq(back.T, part[:, None], driver="gelsd").solution[:, 0]
        rest = (found @ back - part).abs()
        errors.append(found - found.mean())
        misfits.append(rest.mean() / part.abs().mean().clamp(min=1e-300))
    return torch.stack(errors), torch.stack(misfits)


def _scale(logits: Tensor, error: Tensor) -> float:
    """Return the factor at which a label is equal in all but its two largest entries."""
    low, high = 1 / WIDEST_FACTOR, WIDEST_FACTOR
    best = 1.0
    for _ in range(ZOOMS):
        steps = torch.linspace(0, 1, SCANNED, dtype=torch.float64)[:, None]
        factors = low * (high / low) ** steps
        label = (factors * logits).softmax(dim=1) - error / factors
        spread = label.sort(dim=1).values[:, :-2].var(dim=1) * factors[:, 0] ** 2
        at = int(spread.argmin())
        best = float(factors[at])
        low, high = float(factors[max(at - 1, 0)]), float(factors[min(at + 1, SCANNED - 1)])
    return best
