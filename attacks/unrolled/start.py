"""Examples from masks, roughly: what several steps leave is nearly the gradient of one.

The equations of `attacks.masks` hold for a step, at that step's weights. Of several the mean of
their gradients is known, and to first order the mean of their weights: then `δ_b` is two-valued up
to O(lr · S) but where masks change, and all examples come out, at 40 to 60 dB with a bias.

Without a bias a start's scale is that at which the label is one with all but its two largest
entries small: between no smoothing and much it changes little.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.dense.network import FullyConnected, on_array
from attacks.masks.equation import MaskEquation
from attacks.masks.polish import Pair
from attacks.types import NotApplicable
from attacks.unrolled.dual import Duality, exchanges
from attacks.unrolled.pairs import single_pair, steady_pairs, vanishing_pair
from attacks.unrolled.peel import peeled
from attacks.unrolled.problem import Update
from attacks.unrolled.refine import Equations
from attacks.unrolled.simulation import Unknowns
from attacks.victim.gradients import Array

PEELED = 1e-4
"""Mean misfit of one epoch's examples that needs no exchange."""
ON_THE_WAY = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the way from the weights that were sent to those that came back."""
MOST_DERIVATIVES = 3e8
"""Of all equations by all unknowns, which memory must hold: 64 examples of 512 units."""
DRIFT = 0.05
"""What several steps leave of the equations, relative, in order of magnitude."""
SMOOTHED = 0.1
"""Of labels to start from."""
LEAST_PART = 0.25
"""Of the largest error below 0, what another class's must be to count."""
MOST_STARTS = 6
"""That are refined."""
SCALES_TRIED, WIDEST_SCALE, SMOOTHINGS_TRIED = 24, 4.0, (0.0, 0.1, 0.3)
"""Of a single example: scales of either sign, from what to what times the usual one; smoothings."""
SCALE_ROUNDS, FARTHEST_SCALE = 20, 20.0
"""Towards a scale, and how far from inputs of a root mean square of 1 it may be."""


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """Examples, roughly.

    Args:
        inputs: of the first layer, (n, d), with the bias's 1 behind them; else of norm 1.
        errors: `p_b − y_b`, (n, K), times the inputs' scale where it isn't known.
        chain: the network midway.
    """

    inputs: Array
    errors: Array
    chain: FullyConnected

    def labels(self) -> Array:
        """Return labels (n, K), roughly: classes whose errors are well below 0, a little smoothed.

        The mean of `p − y` over the steps says of y only which classes, and their proportion.
        """
        classes = class_shares(self.errors)
        return np.asarray((1 - SMOOTHED) * classes + SMOOTHED / classes.shape[1])

    def client(self, update: Update) -> Unknowns:
        """Return the examples in the span's coordinates, the schedule open."""
        labels = torch.from_numpy(self.labels())
        inputs = torch.from_numpy(self.inputs) @ torch.from_numpy(update.span).T
        return Unknowns(inputs, labels, update.timetable.shares)

    def candidates(self, update: Update) -> list[Unknowns]:
        """Return what to start from in the span's coordinates, the likeliest first.

        Without a bias no scale is known. At the scale λ an example of label y moves the layer by
        what training says, and where that is what was sent, λ is right. With λ a move grows while
        steps are short, and falls where they are so long that labels are soon met: two ways to go.
        """
        client = self.client(update)
        equations = Equations.of(update)
        if update.examples == 1:
            found = list(_of_one_example(update, client))
        elif update.has_bias:
            return [client]
        else:
            found = [_scaled(update, client, power) for power in (None, 0.5, -0.5)]
        sizes = [float(equations.residuals(one).abs().median()) for one in found]
        order = sorted(range(len(found)), key=lambda i: (sizes[i] != sizes[i], sizes[i]))
        return [found[i] for i in order[:MOST_STARTS]]


def _of_one_example(update: Update, client: Unknowns) -> Iterator[Unknowns]:
    """Yield a single example's direction at many scales, with each class, smoothed and not.

    Steps on one example are long, and its errors change sign on the way: the mean says little.
    """
    usual = float(update.chain.layers[0].weight.shape[1]) ** 0.5
    scales = usual * np.geomspace(1 / WIDEST_SCALE, WIDEST_SCALE, SCALES_TRIED)
    factors = [1.0] if update.has_bias else [*scales, *-scales]
    classes = client.labels.shape[1]
    for smoothing in SMOOTHINGS_TRIED:
        for label in (1 - smoothing) * torch.eye(
            classes, dtype=torch.float64
        ) + smoothing / classes:
            for factor in factors:
                inputs = float(factor) * client.inputs
                yield dataclasses.replace(client, inputs=inputs, labels=label[None])


def _scaled(update: Update, client: Unknowns, power: float | None) -> Unknowns:
    """Give inputs of norm 1 the scales that a fixed point ends at; None: the usual ones."""
    inverse = torch.linalg.pinv(client.inputs)
    sent = update.moves[0] @ inverse
    usual = float(update.chain.layers[0].weight.shape[1]) ** 0.5
    scales = torch.full((len(inverse.T), 1), usual, dtype=torch.float64)
    scaled = client
    for _ in range(0 if power is None else SCALE_ROUNDS):
        scaled = dataclasses.replace(client, inputs=scales * client.inputs)
        moved = update.simulation.moves(scaled)[0] @ inverse
        ratio = (sent * moved).sum(dim=0) / (moved * moved).sum(dim=0).clamp(min=1e-300)
        scales = scales * ratio.nan_to_num(1.0).clamp(0.2, 5.0)[:, None] ** power
        scales = scales.clamp(usual / FARTHEST_SCALE, usual * FARTHEST_SCALE)
    return dataclasses.replace(client, inputs=scales * client.inputs)


def rough_examples(update: Update, generator: torch.Generator) -> Start:
    """Find all examples by the masks of the first layer.

    Raises:
        NotApplicable: masks don't show all examples, or these are too many to be refined.
    """
    first, last = update.chain.layers[0], update.chain.layers[-1]
    unknowns = update.examples * (update.examples + len(last.weight))
    derivatives = unknowns * (len(first.weight) * update.examples + last.weight.size)
    if derivatives > MOST_DERIVATIVES:
        raise NotApplicable(
            f"{update.examples} examples behind {update.steps} local steps of {len(first.weight)} "
            f"units take {derivatives:.1g} derivatives; at most {MOST_DERIVATIVES:.1g} are tried"
        )
    chain = _drifting(update.midway())
    equation = MaskEquation.of(chain, 0, update.examples)
    pairs, chosen = _pairs(update, equation, chain, generator)
    if len(chosen) < equation.size:
        raise NotApplicable(
            f"of {equation.size} examples behind {update.steps} local steps, masks of layer "
            f"{equation.source.name!r} show {len(chosen)}: they change too much from step to step, "
            "or there are too many"
        )
    if len(pairs) > len(chosen) and update.timetable.is_one_epoch:
        chosen = _exchanged(update, equation, chain, pairs, chosen)
    return _start(equation, chain, [pairs[i] for i in chosen])


def _pairs(
    update: Update, equation: MaskEquation, chain: FullyConnected, generator: torch.Generator
) -> tuple[list[Pair], list[int]]:
    """Return what may be the examples' pairs, and which of them probably are."""
    if equation.size == 1:  # there is nothing to tell apart
        return [single_pair(equation)], [0]
    if equation.low > 0:
        pairs = steady_pairs(equation, chain, generator)
        return pairs, list(range(len(pairs)))
    first = update.chain.layers[0]
    weights = [first.weight - share * update.reach * first.gradient for share in ON_THE_WAY]
    directions, chosen = Duality.of(equation, weights).search(generator)
    return [vanishing_pair(equation, q) for q in directions], chosen


def _exchanged(
    update: Update,
    equation: MaskEquation,
    chain: FullyConnected,
    pairs: Sequence[Pair],
    chosen: list[int],
) -> list[int]:
    """Exchange pairs for others while that fits an epoch better, step by step."""

    def unlike(trial: Sequence[int]) -> float:
        start = _start(equation, chain, [pairs[i] for i in trial])
        return peeled(update, start.client(update), until=PEELED)[1]

    best, q = unlike(chosen), np.array([pair.q for pair in pairs])
    while best > PEELED:
        trials = exchanges(q, chosen)
        found = min(((unlike(trial), trial) for trial in trials), default=(best, chosen))
        if not found[0] < best:
            break
        best, chosen = found
    return chosen


def _start(equation: MaskEquation, chain: FullyConnected, pairs: Sequence[Pair]) -> Start:
    inputs, factors = _inputs(equation, pairs)
    return Start(inputs, _last_errors(equation, pairs, factors, inputs, chain), chain)


def _drifting(chain: FullyConnected) -> FullyConnected:
    """Return the network with drift as an error of the gradients above the first layer.

    So the space of the last layer's `e` is taken whole wherever that can be afforded.
    """
    first, *above = chain.layers
    layers = [
        dataclasses.replace(
            layer,
            rounding=np.hypot(layer.rounding, DRIFT * np.sqrt(np.mean(layer.gradient**2))),
        )
        for layer in above
    ]
    return dataclasses.replace(chain, layers=(first, *layers))


def _inputs(equation: MaskEquation, pairs: Sequence[Pair]) -> tuple[Array, Array]:
    """Return the layer's inputs (n, d), with the bias's 1, and the factors (n, 1) on `U q` and t.

    Without a bias inputs are of norm 1, and of the sign by which they turn on what the masks do.
    """
    source = equation.source
    q = np.array([pair.q for pair in pairs])
    rows = ((np.linalg.inv(q).T * equation.values) @ equation.right) * equation.columns
    if source.has_bias:
        scale = np.where(rows[:, -1:] == 0, 1e-300, rows[:, -1:])
    else:
        masks = np.array([pair.is_on for pair in pairs])
        scale = (signs_of(rows @ source.weight.T, masks) * np.linalg.norm(rows, axis=1))[:, None]
    return rows / scale, len(q) * scale


def signs_of(outputs: Array, masks: NDArray[np.bool_]) -> Array:
    """Return the signs (n,) by which inputs turn on what masks do, by their outputs (n, D)."""
    agreeing = np.where((outputs > 0) == masks, np.abs(outputs), -np.abs(outputs))
    return np.where(agreeing.sum(axis=1) >= 0, 1.0, -1.0)


def class_shares(errors: Array) -> Array:
    """Return labels (n, K): classes whose errors `p − y` are well below 0, in proportion."""
    negative = np.maximum(-errors, 0)
    negative *= negative > LEAST_PART * negative.max(axis=1, keepdims=True)
    return np.asarray(negative / np.maximum(negative.sum(axis=1, keepdims=True), 1e-300))


def _last_errors(
    equation: MaskEquation,
    pairs: Sequence[Pair],
    factors: Array,
    inputs: Array,
    chain: FullyConnected,
) -> Array:
    """Return `p_b − y_b` (n, K), times the inputs' scale where it isn't known.

    What a pair's t hands down says it right behind the last layer; layers between undo their masks.
    """
    t = factors * np.array([pair.t for pair in pairs])
    down = t @ (equation.targets * equation.rows[:, None]).T
    masks = [
        on_array(activation.slope, a)
        for activation, a in zip(
            chain.activations,
            chain.forward(inputs[:, : chain.layers[0].weights.shape[1]])[1:-1],
            strict=True,
        )
    ]
    live = equation.live
    errors = np.empty((len(down), len(chain.layers[-1].weight)))
    for row, target in enumerate(down):
        back = chain.layers[-1].weights
        for index in range(len(chain.layers) - 2, 0, -1):
            back = (back * masks[index][row]) @ chain.layers[index].weights
        # Logits' errors sum to 0.
        centred = back - back.mean(axis=0)
        errors[row] = np.linalg.lstsq(centred[:, live].T, target, rcond=None)[0]
    return np.asarray(errors - errors.mean(axis=1, keepdims=True))
