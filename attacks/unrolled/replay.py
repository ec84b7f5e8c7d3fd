"""The examples whose training leaves an update, and a test that no others pass.

Unknown are a few numbers for each example, known some thousands: what others leave differs from
what was sent by a hundredth and more, what the right ones leave by roundings. In between nothing
is claimed: a mask that rounding sets otherwise on the client, or a training told a little wrongly.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from attacks.types import GradientLeak, NotApplicable
from attacks.unrolled.found import BAR_SIGMAS, TIED_FROM, Replay, judged
from attacks.unrolled.one_image import has_convolutions
from attacks.unrolled.one_replay import replay_image
from attacks.unrolled.problem import Update
from attacks.unrolled.refine import MOST_EFFORT, Effort, Refined
from attacks.unrolled.simulation import Unknowns
from attacks.unrolled.solve import MET, solve
from attacks.unrolled.start import rough_examples
from attacks.victim.kept import kept_with
from attacks.victim.network import Network
from attacks.victim.require import require_known_layers


def replay(leak: GradientLeak, network: Network) -> Replay:
    """Find the examples behind several steps; what is found is kept with the leak.

    Draws are its own, so that all attacks find the same.

    Raises:
        NotApplicable: the steps can't be repeated, or the examples not be told apart.
    """
    try:
        return kept_with(leak, "_replay", lambda: _replay(leak, network))
    except NotApplicable as reason:
        raise NotApplicable(
            f"the update sums {leak.local_steps} local steps; this attack needs the gradient of "
            f"one, or steps that it can repeat: {reason}"
        ) from reason


def _replay(leak: GradientLeak, network: Network) -> Replay:
    require_known_layers(leak)
    if has_convolutions(network):
        return replay_image(leak, network)
    update = Update.of(leak, network)
    start = rough_examples(update, torch.Generator().manual_seed(0))
    starts = start.candidates(update)
    effort, is_placed = _effort_for(update), not update.simulation.slopes[0]
    if len(update.chain.layers[-1].weight) >= TIED_FROM:
        found = solve(update, starts, effort, is_tied=True, is_placed=is_placed)
        if found.typical < MET:
            return _judged(update, found)
        if found.misfit < math.inf:
            starts = [found.client, *starts]
    return _judged(update, solve(update, starts, Effort(), is_tied=False, is_placed=is_placed))


def _effort_for(update: Update) -> Effort:
    """Return what may be spent: twice as much where the orders of several epochs aren't told."""
    timetable = update.timetable
    return Effort() if timetable.is_told or timetable.is_one_epoch else Effort(2 * MOST_EFFORT)


def _judged(update: Update, found: Refined) -> Replay:
    """Test the whole update, units included that no step was seen to move."""
    client = found.client
    inputs = client.inputs.numpy() @ update.span
    width = inputs.shape[1] - update.has_bias
    features = update.chain.forward(inputs[:, :width])[-2]
    input_bars = BAR_SIGMAS * found.noise * found.spread.inputs.norm(dim=1) / width**0.5
    label_bars, reasons = judged(found, *_misfit(update, client))
    return Replay(
        torch.from_numpy(np.ascontiguousarray(inputs[:, :width])),
        torch.from_numpy(features),
        client.labels,
        label_bars,
        input_bars,
        found.typical,
        reasons,
    )


def _misfit(update: Update, client: Unknowns) -> tuple[float, float]:
    """Return the relative misfit of all layers, and what rounding leaves."""
    rest, size, rounding = 0.0, 0.0, 0.0
    moves = update.simulation.moves(client)
    for moved, sent, each in zip(moves, update.moves, update.rounding, strict=True):
        rest += float((moved - sent).square().sum())
        size += float(sent.square().sum())
        rounding += each**2 * sent.numel()
    misfit = (rest / size) ** 0.5
    return misfit if misfit < math.inf else math.inf, (rounding / size) ** 0.5
