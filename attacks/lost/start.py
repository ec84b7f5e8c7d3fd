"""A batch's first inputs, from what can be completed of each layer's gradient.

Each layer has a core of rows and columns with entries enough to tell the missing ones
(`attacks.lost.low_rank`). In that of the last hidden layer, the masks of `attacks.masks` show all
examples: their inputs there, on the core's columns. From there down [ours]: with U S V a layer's
core and `δ_b = U q_b`, the ReLU behind it sets δ_b to zero wherever it was shut, that is where the
input of the layer above is 0. Those rows of U are orthogonal to q_b, and where they are many more
than the B unknowns, they are all that it takes: no label, no weight of the layers above. All q
give the inputs, dual to them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from attacks.dense.network import FullyConnected
from attacks.lost.black import scale_of_black
from attacks.lost.columns import by_entries, by_outputs, level_of
from attacks.lost.lit import Rows, is_on, with_lit
from attacks.lost.low_rank import complete_low_rank, core_of
from attacks.lost.sent import Mask
from attacks.masks.equation import MaskEquation
from attacks.masks.examples import first_inputs, signs
from attacks.masks.find import find_pairs
from attacks.types import NotApplicable
from attacks.victim.gradients import Array, Layer

SHUT_INPUT = 1e-3
"""Inputs up to this one, relative to their root mean square, count as those of a unit that is shut:
of those that aren't, one in a thousand is as small."""
SHUT_ROUNDS = 4
"""Rounds in which units that aren't shut after all are left out."""
NOT_SHUT = 6.0
"""Residual, relative to the median, from which one is."""
SPARE_SHUT = 2.0
"""Shut units for each example of the batch, at least."""

TOO_LITTLE = "of the gradient of layer {!r} too little was sent to complete it"


@dataclass(frozen=True, eq=False)
class Core:
    """A layer's rows and columns whose missing entries are completed.

    Args:
        layer: its core's columns alone, with zeros for all other rows.
        rows: which these are, (m,).
        columns: which these are, with the bias's, if any, (n,).
    """

    layer: Layer
    rows: Mask
    columns: Mask

    @classmethod
    def of(cls, layer: Layer, sent: Mask, rank: int, spare: float) -> Core:
        """Complete a layer's gradient as far as rows and columns have entries enough.

        Args:
            layer: with its gradient.
            sent: which of its entries there are.
            rank: B.
            spare: entries of a row or a column for each unknown that are enough.

        Raises:
            NotApplicable: there are too few, or a bias isn't among them.
        """
        rows, columns = core_of(sent, spare * rank)
        if min(rows.sum(), columns.sum()) <= rank or (layer.has_bias and not columns[-1]):
            raise NotApplicable(TOO_LITTLE.format(layer.name))
        part = np.ix_(rows, columns)
        whole = np.zeros((len(rows), int(columns.sum())))
        whole[rows] = complete_low_rank(layer.gradient[part], sent[part], rank)
        return cls(dataclasses.replace(layer.only(columns), gradient=whole), rows, columns)

    def known_rows(self, layer: Layer, sent: Mask, inputs: Array) -> Rows:
        """Return its rows with their δ, in all columns of the layer as it came."""
        return Rows.of(layer, sent, self.rows, _delta(self, inputs))


@dataclass(frozen=True, eq=False)
class Shown:
    """A layer's inputs on its core's columns, and what it made of them.

    Args:
        inputs: (B, columns without the bias's); without a bias, unit vectors.
        rows: (m,), the units of which it is known.
        is_on: (B, these), whether they are on.
        outputs: (B, these), what they make of the inputs, up to a factor each; None where nothing
            tells.
    """

    inputs: Array
    rows: Mask
    is_on: Mask
    outputs: Array | None = None


def first_inputs_of(
    chain: FullyConnected,
    sent: list[Mask],
    black: Array,
    batch: int,
    generator: torch.Generator,
    *,
    spare: float,
) -> tuple[Array, Array]:
    """Return the first layer's inputs (B, n), and standard deviations of what was lost of them.

    Without a bias, up to a positive factor each.

    Args:
        chain: from the image to the logits, with its gradients.
        sent: which of each layer's entries there are.
        black: the first layer's input (n,) on a black image, for what nothing tells.
        batch: B.
        generator: draws starts.
        spare: see `Core.of`.

    Raises:
        NotApplicable: too little was sent, or masks don't show all examples.
    """
    if len(chain.layers) < 2 or any(activation.low != 0 for activation in chain.activations):
        raise NotApplicable("a batch is completed by the ReLUs of hidden layers, which are missing")
    hidden, head = list(zip(chain.layers[:-1], sent, strict=False)), chain.layers[-1]
    cores = [Core.of(layer, there, batch, spare) for layer, there in hidden]
    last = cores[-1]
    top = FullyConnected((last.layer, head), chain.activations[-1:], chain.kept[-1:])
    equation = MaskEquation.of(top, 0, batch, is_above_whole=False)
    pairs = find_pairs(equation, top, 0, generator)
    if len(pairs) < batch:
        raise NotApplicable(
            f"of what was sent of layer {last.layer.name!r}'s gradient, masks show {len(pairs)} of "
            f"{batch} examples"
        )
    shown = Shown(
        first_inputs(equation, pairs, batch)[0],
        equation.live,
        np.array([pair.is_on for pair in pairs]),
    )
    above = Rows.of_head(head, sent[-1], last.rows, _delta(last, shown.inputs))
    for core, over, (layer, there) in zip(cores[-2::-1], cores[:0:-1], hidden[:0:-1], strict=True):
        outputs, units = _outputs(over, layer, there, shown.inputs)
        above = over.known_rows(layer, there, shown.inputs)
        shown = _inputs_below(core, outputs, units, batch)
    return _with_columns(cores[0], *hidden[0], shown, black, above)


def _with_columns(
    core: Core, layer: Layer, sent: Mask, shown: Shown, black: Array, above: Rows
) -> tuple[Array, Array]:
    """Return the first layer's inputs (B, n), and standard deviations of what isn't in its core.

    Args:
        core: of the first layer.
        layer: as it came.
        sent: which of its entries there are.
        shown: its inputs on the core's columns.
        black: (n,), the layer's input on a black image.
        above: rows of the layer above.
    """
    width = len(core.columns) - layer.has_bias
    pixels, lost = core.columns[:width], ~core.columns[:width]
    whole, std = np.empty((len(shown.inputs), width)), np.zeros((len(shown.inputs), width))
    whole[:, pixels], whole[:, lost] = shown.inputs, black[lost]
    if not lost.any():
        return whole, std
    weight = layer.weight[shown.rows]
    if not layer.has_bias:
        turn = weight[:, lost] @ black[lost]
        for row, is_on in zip(whole, shown.is_on, strict=True):
            row[lost] *= level_of(weight[:, pixels] @ row[pixels], turn, is_on)
    delta = _delta(core, shown.inputs)
    size = float(np.sqrt(np.mean(shown.inputs**2)))
    rounding = float(np.sqrt(np.mean(layer.rounding**2)))
    part = np.ix_(core.rows, np.append(lost, False) if layer.has_bias else lost)
    whole[:, lost], variance, bases = by_entries(
        delta, layer.gradient[part], sent[part], whole[:, lost], rounding, size
    )
    if any(basis.size for basis in bases):
        lit = _with_lit(core, layer, sent, shown.inputs, black, above)
        if lit is not None:
            return lit
        if shown.outputs is None:
            variance[:] = np.inf
        else:
            change, open_variance = by_outputs(
                layer, lost, whole, bases, shown.rows, shown.outputs, shown.is_on
            )
            whole[:, lost] += change
            variance += open_variance
    std[:, lost] = np.sqrt(variance)
    return whole, std


def _with_lit(
    core: Core, layer: Layer, sent: Mask, inputs: Array, black: Array, above: Rows
) -> tuple[Array, Array] | None:
    """Return what `with_lit` does, where the scale of black shows."""
    pixels = core.columns[: len(black)]
    scales = [scale_of_black(row, black[pixels]) for row in inputs]
    known = [scale for scale in scales if scale is not None]
    if len(known) < len(scales):
        return None
    start = np.array(known)[:, None] * black
    start[:, pixels] = inputs
    own = core.known_rows(layer, sent, inputs)
    return with_lit(layer, own, above.only(core.rows), core.rows, is_on(own.delta), start, pixels)


def _delta(core: Core, inputs: Array) -> Array:
    """Return δ / B on a core's rows, (B, these), by its layer's inputs on its columns."""
    known = core.layer.augmented(inputs)
    return np.asarray(np.linalg.lstsq(known.T, core.layer.gradient[core.rows].T, rcond=None)[0])


def _outputs(core: Core, layer: Layer, sent: Mask, inputs: Array) -> tuple[Array, Mask]:
    """Return the outputs of the layer below, and of which units, also of some beside the core.

    Args:
        core: of the layer above.
        layer: that layer as it came.
        sent: which of its entries there are.
        inputs: on the core's columns, (B, these).
    """
    width = len(core.columns) - layer.has_bias
    others = ~core.columns  # never the bias
    part = np.ix_(core.rows, others)
    start = np.zeros((len(inputs), int(others.sum())))
    size, std = float(np.sqrt(np.mean(inputs**2))), float(np.sqrt(np.mean(layer.rounding**2)))
    delta = _delta(core, inputs)
    found, variance, open_ = by_entries(delta, layer.gradient[part], sent[part], start, std, size)
    is_known = np.array([not basis.size for basis in open_], dtype=bool)
    is_known &= variance.max(axis=0, initial=0.0) <= (SHUT_INPUT * size) ** 2
    units = core.columns[:width].copy()
    outputs = np.zeros((len(inputs), width))
    outputs[:, units] = inputs
    more = np.flatnonzero(others)[is_known]
    outputs[:, more], units[more] = found[:, is_known], True
    return outputs[:, units], units


def _inputs_below(core: Core, outputs: Array, units: Mask, batch: int) -> Shown:
    """Return the inputs of a layer by which of its units were shut.

    Args:
        core: of the layer.
        outputs: (B, those that are known).
        units: which of the layer's they are, (m,).
        batch: B.

    Raises:
        NotApplicable: too few units are known to be shut.
    """
    common = core.rows & units
    shown = outputs[:, core.rows[units]]
    left, values, right = np.linalg.svd(core.layer.gradient[common], full_matrices=False)
    left, values, right = left[:, :batch], values[:batch], right[:batch]
    size = np.sqrt(np.mean(shown**2, axis=1, keepdims=True))
    q = np.array([_direction(left, shut) for shut in shown <= SHUT_INPUT * size])
    rows = (np.linalg.inv(q).T * values) @ right
    is_on = shown > SHUT_INPUT * size
    if core.layer.has_bias:
        inputs = rows[:, :-1] / np.where(rows[:, -1:] == 0, np.nan, rows[:, -1:])
    else:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        inputs = signs(rows @ core.layer.weight[common].T, is_on) * rows
    return Shown(inputs, units, outputs > SHUT_INPUT * size, outputs)


def _direction(left: Array, shut: Mask) -> Array:
    """Return q (R,) of norm 1 with `U q = 0` on shut units, of which some may not be.

    Raises:
        NotApplicable: too few are.
    """
    for _ in range(SHUT_ROUNDS):
        if shut.sum() < SPARE_SHUT * left.shape[1]:
            raise NotApplicable(
                f"{int(shut.sum())} units of a layer are known to be shut; to find an example "
                f"among {left.shape[1]} by them takes {SPARE_SHUT:g} times as many"
            )
        q = np.linalg.svd(left[shut])[2][-1]
        off = np.abs(left @ q)
        kept = shut & (off <= NOT_SHUT * max(float(np.median(off[shut])), 1e-14))
        if (kept == shut).all():
            break
        shut = kept
    return np.asarray(q)
