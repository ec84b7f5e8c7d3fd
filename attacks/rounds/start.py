"""Rough examples, by the masks of all rounds' units together.

The coefficients q of an example, `δ_rb = H_r q_b`, `H_r = G_r Vᵀ`, are the same in all rounds: so
the units of R rounds are those of one layer that is R times as wide, whose `W_{l+1}ᵀ e` is one e
sent down at each round's weights, as far as e stays. Its two-valued equations are those of
`attacks.masks`, in coordinates in which the *signal* is white: or else noise would pass for small
parts of it. Annealed starts end at examples, and at what is none. Of all ends those are taken that
together explain the H_r best, one after another (orthogonal matching pursuit; Y. Pati et al.,
Asilomar 1993), and the coefficients of that are the inputs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from attacks.dense.network import FullyConnected
from attacks.masks.annealed import WARM, anneal
from attacks.masks.equation import MaskEquation
from attacks.masks.polish import Pair
from attacks.masks.starts import Kind, Starts
from attacks.rounds.problem import Rounds
from attacks.types import NotApplicable
from attacks.unrolled.simulation import Unknowns
from attacks.unrolled.start import class_shares, signs_of
from attacks.victim.gradients import Array, Layer

MOST_DRAWS = 8
"""Of starts, at most."""
EARLY = 4
"""Which part of the rounds, the earliest, is looked at first: e moves least in few of them."""
EXPLAINED = 0.97
"""Share of the signal that examples explain at which no more starts are drawn."""
LEAST_GAIN, FRUITLESS_DRAWS = 2e-3, 2
"""Growth of that share below which a draw found nothing, and how many such in a row are the last,
once there are as many examples as there should be."""
SAME_END, LEAST_APART = 0.98, 0.1
"""Cosine of two ends that are one; and what of an end is no combination of others, at least."""


@dataclass(frozen=True, eq=False)
class Ends:
    """What annealed starts ended at.

    Args:
        q: (N, n), of norm 1.
        designs: what each says of all rounds' δ, (N, units).
        masks: (N, units).
    """

    q: Array
    designs: Array
    masks: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Found:
    """Examples, roughly.

    Args:
        rows: inputs in the span's coordinates, of the sign that the masks have, (found, n).
        explained: of the rounds' signal, the share that they explain.
    """

    rows: Array
    explained: float


def rough_examples(rounds: Rounds, generator: torch.Generator) -> Unknowns:
    """Find all examples, in the span's coordinates.

    Args:
        rounds: of a client.
        generator: draws starts.

    Raises:
        NotApplicable: starts don't end at as many examples as there are.
    """
    early = dataclasses.replace(rounds, each=rounds.each[: -(-len(rounds.each) // EARLY)])
    some = [rounds] if len(early.each) == len(rounds.each) else [rounds, early]
    parts = _stacked(early)[1]
    if _whitening(early, parts)[1].min() > len(parts):
        some.reverse()  # noise hides nothing from these alone
    found: Found | None = None
    for one in some:
        now = _found(one, generator)
        if found is None or len(now.rows) > len(found.rows):
            found = now
        if len(found.rows) == rounds.examples:
            break
    assert found is not None
    if len(found.rows) < rounds.examples:
        raise NotApplicable(
            f"of {rounds.examples} examples behind {rounds.count} rounds, masks of the first "
            f"layer's units show {len(found.rows)}: noise hides the others, or they are too many"
        )
    inputs = _inputs(rounds, found)
    labels = _labels(rounds, inputs)
    shares = torch.full((1, rounds.examples), 1 / rounds.examples, dtype=torch.float64)
    return Unknowns(torch.from_numpy(inputs), torch.from_numpy(labels), shares)


def _found(rounds: Rounds, generator: torch.Generator) -> Found:
    """Draw starts until they end at as many examples as there are, and nothing more comes."""
    equation, wide = _wide_layer(rounds)
    parts = wide.layers[0].gradient
    starts = Starts(equation, wide, 0, generator)
    signal = max(float((parts**2).sum()) - parts.size, 1e-300)
    ends: Ends | None = None
    chosen: list[int] = []
    explained, idle = 0.0, 0
    for draw in range(MOST_DRAWS):
        known = [] if ends is None else [_pair(ends, row) for row in chosen]
        if len(known) == rounds.examples:
            known = known[: rounds.examples // 2]
        elif idle:
            known = []  # what is left beside them led nowhere
        kind = Kind.TYPICAL_IMAGES if draw % 2 else Kind.IMAGES
        ends = _joined(ends, equation, *anneal(equation, starts.draw(kind, known), WARM))
        chosen, rest = _pursued(parts, ends.designs, rounds.examples)
        before, explained = explained, 1 - max(rest - parts.size, 0.0) / signal
        idle = idle + 1 if explained < before + LEAST_GAIN else 0
        is_enough = explained > EXPLAINED or idle == FRUITLESS_DRAWS
        if is_enough and len(chosen) == rounds.examples:
            break
    assert ends is not None
    rows = np.linalg.lstsq(ends.designs[chosen].T, parts, rcond=None)[0]
    signs = signs_of(rows @ wide.layers[0].weight.T, ends.masks[chosen])
    return Found(np.asarray(rows * signs[:, None], dtype=np.float64), explained)


def _stacked(rounds: Rounds) -> tuple[Array, Array, Array]:
    """Return the first layer's weights of all rounds (N, n), and H / σ, and W₂ (m, N) above."""
    each = rounds.each
    return (
        np.vstack([one.chain.layers[0].weight @ rounds.span.T for one in each]),
        np.vstack([one.first @ rounds.span.T / one.sigma for one in each]),
        np.hstack([one.chain.layers[1].weights for one in each]),
    )


def _whitening(rounds: Rounds, parts: Array) -> tuple[Array, Array]:
    """Return directions (n, n) as columns, and what of `‖H v‖² / σ²` is signal in each, (n,).

    What noise alone leaves is taken off: as many units as there are, and where all rounds are here
    as they came, what it adds by having its say in V.
    """
    values, ways = np.linalg.eigh(parts.T @ parts)
    signal = values - len(parts)
    if len(rounds.each) == rounds.count:
        signal = np.minimum(signal, np.sort(rounds.signal))
    return ways, np.maximum(signal, 0.5 * np.sqrt(parts.size))


def _wide_layer(rounds: Rounds) -> tuple[MaskEquation, FullyConnected]:
    """Return the units of all rounds as one layer's, and with the layer above as a network.

    Gradients are in units of noise, in the span's coordinates.
    """
    weight, part, second = _stacked(rounds)
    units, size = part.shape
    ways, signal = _whitening(rounds, part)
    own, nothing = rounds.each[0].chain, np.zeros_like(second)
    layer = Layer("all rounds", weight, part, np.ones_like(part), rounds.has_bias, 1e-16, False)
    above = Layer("above", second, nothing, nothing, False, 1e-16, False)
    equation = MaskEquation(
        left=part @ ways / np.sqrt(signal),
        values=np.sqrt(signal),
        right=ways.T,
        targets=np.linalg.qr(second.T @ _handed_down(rounds))[0],
        target_error=0.0,
        low=own.activations[0].low or 0.0,
        sigma=1.0,
        noise=1.0,
        rows=np.ones(units),
        columns=np.ones(size),
        source=layer,
        live=np.ones(units, dtype=bool),
    )
    vars(equation)["always_on"] = None  # noise leaves no unit so exact
    return equation, FullyConnected((layer, above), own.activations[:1])


def _handed_down(rounds: Rounds) -> Array:
    """Return an orthonormal basis (m, r) of what comes down to the second layer's outputs."""
    layers = rounds.each[0].chain.layers
    outputs = len(layers[1].gradient)
    if len(layers) == 2:
        ones = np.ones((outputs, 1))
        return np.asarray(np.linalg.qr(np.hstack([ones, np.eye(outputs)[:, 1:]]))[0][:, 1:])
    above = [one.chain.layers[1].gradient / one.sigmas[1] for one in rounds.each]
    moment = sum(gradient @ gradient.T for gradient in above)
    return np.asarray(np.linalg.eigh(moment)[1][:, -rounds.examples :])


def _joined(ends: Ends | None, equation: MaskEquation, q: Array, t: Array) -> Ends:
    """Add ends that are new."""
    fitted, w = q @ equation.left.T, t @ equation.targets.T
    masks = np.abs(fitted - w) < np.abs(fitted - equation.low * w)
    designs = np.where(masks, w, equation.low * w)
    size = np.linalg.norm(designs, axis=1, keepdims=True)
    designs = designs / np.maximum(size, 1e-300)
    if ends is not None:
        q, designs = np.vstack([ends.q, q]), np.vstack([ends.designs, designs])
        masks = np.vstack([ends.masks, masks])
    alike = np.abs(designs @ designs.T) > SAME_END
    kept = [row for row in range(len(q)) if not alike[row, :row].any()]
    return Ends(q[kept], designs[kept], masks[kept])


def _pursued(parts: Array, designs: Array, count: int) -> tuple[list[int], float]:
    """Return the designs (N, units) that explain parts (units, n) best, and what they leave."""
    chosen: list[int] = []
    rest = parts
    for _ in range(min(count, len(designs))):
        basis = np.linalg.qr(designs[chosen].T)[0] if chosen else np.zeros((len(parts), 0))
        across = designs - (designs @ basis) @ basis.T
        norms = np.linalg.norm(across, axis=1)
        gains = np.linalg.norm(across @ rest, axis=1) / np.maximum(norms, LEAST_APART)
        gains[norms < LEAST_APART] = 0.0
        one = int(gains.argmax())
        if not gains[one] > 0:
            break
        chosen.append(one)
        basis = np.linalg.qr(designs[chosen].T)[0]
        rest = parts - basis @ (basis.T @ parts)
    return chosen, float((rest**2).sum())


def _pair(ends: Ends, row: int) -> Pair:
    return Pair(ends.q[row], np.zeros(1), ends.masks[row], 0.0, 1.0, is_clear=True)


def _inputs(rounds: Rounds, found: Found) -> Array:
    """Return inputs (n, n), with a bias's 1 where there is one; else of the usual size."""
    rows = found.rows
    if rounds.has_bias:
        last = rows @ rounds.span[:, -1]
        return np.asarray(rows / np.where(last > 0, last, 1e300)[:, None])
    usual = rounds.each[0].first.shape[1] ** 0.5
    return np.asarray(usual * rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _labels(rounds: Rounds, inputs: Array) -> Array:
    """Return labels (n, K): the shares of the classes whose errors are negative.

    `∂L/∂W` of the last layer is `Σ_b (p_b − y_b) x_bᵀ / n`, and x are sent forward.
    """
    count = len(inputs)
    normal = np.zeros((count, count))
    target = np.zeros((count, len(rounds.last.layers[-1].weight)))
    width = rounds.span.shape[1] - rounds.has_bias
    full = (inputs @ rounds.span)[:, :width]
    for one in rounds.each:
        head = one.chain.layers[-1]
        x = head.augmented(one.chain.forward(full)[-2]) / count
        precision = 1 / np.mean(one.sigmas[-1] ** 2)
        normal = normal + precision * x @ x.T
        target = target + precision * x @ head.gradient.T
    errors = np.linalg.solve(normal + 1e-9 * np.trace(normal) * np.eye(count), target)
    return class_shares(errors)
