"""The entries of a batch's gradient that a defense left out, found again.

[ours] All of it follows from the first layer's inputs (`attacks.lost.start`) and from ∂L/∂z at the
logits, which the last layer's entries give by least squares: forward, then backward. Rows of a
layer with entries enough give their δ themselves, whatever the side of an output near zero.
"""

from __future__ import annotations

import numpy as np
import torch

from attacks.dense.network import FullyConnected, on_array
from attacks.lost.black import with_black
from attacks.lost.low_rank import SPARE_ENTRIES
from attacks.lost.sent import Mask, misfit
from attacks.lost.start import TOO_LITTLE, first_inputs_of
from attacks.types import NotApplicable
from attacks.victim.gradients import Array

SUPPORTS = 0.7
"""Misfit with pixels taken as black, in what it is without, from which that is so."""
SPARE_IN_CORE = 2.5
"""Entries of a core's rows and columns for each unknown, at least, in a first try: those that have
few err by more, but without them a core may be too small."""
NEAR_ENOUGH_BATCH = 1e-3
"""Misfit on the entries that were sent, relative, from which nothing is put in."""


def complete_batch(
    layers: FullyConnected,
    sent: list[Mask],
    black: Array,
    batch: int,
    generator: torch.Generator,
) -> tuple[list[Array], Array, Array]:
    """Return every layer's gradient, the first layer's inputs (B, n), and their errors (B,).

    Args:
        layers: from the image to the logits, with what came of their gradients.
        sent: which of each one's entries that is.
        black: the first layer's input (n,) on a black image.
        batch: B.
        generator: draws starts.

    Raises:
        NotApplicable: too little was sent, or what is found doesn't agree with it.
    """
    try:
        return _complete_batch(layers, sent, black, batch, SPARE_IN_CORE, generator)
    except NotApplicable:
        return _complete_batch(layers, sent, black, batch, SPARE_ENTRIES, generator)


def _complete_batch(
    layers: FullyConnected,
    sent: list[Mask],
    black: Array,
    batch: int,
    spare: float,
    generator: torch.Generator,
) -> tuple[list[Array], Array, Array]:
    """Do so by cores whose rows and columns have that many entries for each example, at least."""
    inputs, std = first_inputs_of(layers, sent, black, batch, generator, spare=spare)
    found = _gradients(layers, sent, inputs, spare)
    off = misfit(layers.layers, sent, found)
    darker = with_black(inputs, std, black)
    closer = _gradients(layers, sent, darker, spare)
    fitting = misfit(layers.layers, sent, closer)
    if fitting <= SUPPORTS * off:
        std = np.where(darker == inputs, std, 0.0)
        inputs, found, off = darker, closer, fitting
    if not off <= NEAR_ENOUGH_BATCH:
        raise NotApplicable(
            f"what is found of {batch} examples misses the entries that were sent by {off:.1g}, "
            "relative"
        )
    sizes = np.maximum(np.linalg.norm(inputs, axis=1), 1e-300)
    return found, inputs, np.linalg.norm(std, axis=1) / sizes


def _gradients(
    layers: FullyConnected, sent: list[Mask], inputs: Array, spare: float
) -> list[Array]:
    """Return every layer's gradient by the first layer's inputs (B, n).

    Raises:
        NotApplicable: too little was sent of the last layer's.
    """
    *values, _ = layers.forward(inputs)
    rows = [layer.augmented(a) for layer, a in zip(layers.layers, values, strict=True)]
    δ, told = _told(layers.layers[-1].gradient, sent[-1], rows[-1], spare)
    if not told.all():
        raise NotApplicable(TOO_LITTLE.format(layers.layers[-1].name))
    found = []
    for index in reversed(range(len(rows))):
        own, told = _told(layers.layers[index].gradient, sent[index], rows[index], spare)
        found.append(np.where(told, own, δ).T @ rows[index])
        if index:
            slopes = on_array(layers.activations[index - 1].slope, values[index])
            δ = (δ @ layers.layers[index].weights) * slopes
    return found[::-1]


def _told(gradient: Array, sent: Mask, rows: Array, spare: float) -> tuple[Array, Mask]:
    """Return δ / B, (B, m), by a layer's inputs (B, n), and of which units entries tell it."""
    δ, told = np.zeros((len(rows), len(gradient))), sent.sum(axis=1) >= spare * len(rows)
    for unit in np.flatnonzero(told):
        there = sent[unit]
        δ[:, unit] = np.linalg.lstsq(rows[:, there].T, gradient[unit, there], rcond=None)[0]
    return δ, told
