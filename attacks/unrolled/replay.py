"""The examples whose training leaves an update, and a test that no others pass.

Unknown are a few numbers for each example, known some thousands: what others leave differs from
what was sent by a hundredth and more, what the right ones leave by roundings. In between nothing
is claimed: a mask that rounding sets otherwise on the client, or a training told a little wrongly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attacks.types import GradientLeak, NotApplicable
from attacks.unrolled.problem import Update
from attacks.unrolled.refine import Effort, Refined
from attacks.unrolled.simulation import Unknowns
from attacks.unrolled.solve import MET, solve
from attacks.unrolled.start import rough_examples
from attacks.victim.kept import kept_with
from attacks.victim.network import Network
from attacks.victim.require import require_known_layers

REPLAY_MISFIT = 3e-5
"""Of the whole update, relative, root mean square: right examples leave 1e-7 to 5e-6."""
TIED_FROM = 5
"""Classes from which labels equal in all but two entries say less than free ones."""
BAR_SIGMAS = 10.0
"""Of what is known of an example, standard deviations in its error bar."""
LEAST_BAR = 1e-6
"""Of a label: it came in float32."""
OTHER_TRAINING = (
    "the training of the examples found leaves an update that differs from what was sent by "
    "{:.1g}, where rounding leaves {:.1g}: steps, examples, optimizer or weights are others than "
    "was told, or masks change too much on the way"
)
NO_LABEL = "its label leaves [0, 1]: the loss, or the training, is another one"


@dataclass(frozen=True, eq=False)
class Replay:
    """Examples, as the training that they leave says.

    Args:
        inputs: of the first layer, (n, d), without the bias's 1.
        features: of the last, at the weights that the client started from, (n, D).
        labels: (n, K).
        label_bars: L∞, (n,).
        input_bars: root mean square error of the inputs, (n,).
        typical: the median residual, in units of rounding.
        reasons: why nothing is claimed, example by example; None where the test was passed.
    """

    inputs: Tensor
    features: Tensor
    labels: Tensor
    label_bars: Tensor
    input_bars: Tensor
    typical: float
    reasons: tuple[str | None, ...]


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
    update = Update.of(leak, network)
    start = rough_examples(update, torch.Generator().manual_seed(0))
    starts = start.candidates(update)
    effort, is_placed = Effort(), not update.simulation.slopes[0]
    if len(update.chain.layers[-1].weight) >= TIED_FROM:
        found = solve(update, starts, effort, is_tied=True, is_placed=is_placed)
        if found.typical < MET:
            return _judged(update, found)
        if found.misfit < math.inf:
            starts = [found.client, *starts]
    return _judged(update, solve(update, starts, Effort(), is_tied=False, is_placed=is_placed))


def _judged(update: Update, found: Refined) -> Replay:
    """Test the whole update, units included that no step was seen to move."""
    client, rounding = found.client, max(found.typical, 1.0)
    inputs = client.inputs.numpy() @ update.span
    width = inputs.shape[1] - update.has_bias
    features = update.chain.forward(inputs[:, :width])[-2]
    input_bars = BAR_SIGMAS * rounding * found.spread.inputs.norm(dim=1) / width**0.5
    slack = (BAR_SIGMAS * rounding * found.spread.labels).amax(dim=1).clamp(min=LEAST_BAR)
    misfit, usual = _misfit(update, client)
    reason = None
    if not (found.typical < MET and misfit < max(REPLAY_MISFIT, MET * usual)):
        reason = OTHER_TRAINING.format(misfit, usual)
    inside = (client.labels >= -slack[:, None]) & (client.labels <= 1 + slack[:, None])
    is_label = inside.all(dim=1).tolist()
    return Replay(
        torch.from_numpy(np.ascontiguousarray(inputs[:, :width])),
        torch.from_numpy(features),
        client.labels,
        slack,
        input_bars,
        found.typical,
        tuple(reason or (None if fits else NO_LABEL) for fits in is_label),
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
