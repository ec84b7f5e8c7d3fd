"""The space that a client's examples span in all rounds, and each round in its coordinates.

With σ_r the standard deviation of a round's noise, the first layer's gradients G_r (D, d) give

    M = Σ_r G_rᵀ G_r / σ_r²,

whose n largest eigenvectors V (n, d) span the images, with an error that falls as 1/√R; with a
bias, the images with their 1. Of N = R·D rows of noise alone the eigenvalues end at `N (1 + √γ)²`,
γ = d/N; one that a signal `N ℓ` raises beyond comes to `N (1 + ℓ)(1 + γ/ℓ)`, and the part
`(1 − γ/ℓ²) / (1 + γ/ℓ)` of the signal lies along the eigenvector that is found (J. Baik,
J. Silverstein, *Eigenvalues of large sample covariance matrices of spiked population models*,
J. Multivariate Analysis 97, 2006).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attacks.dense.network import FullyConnected
from attacks.facts import Told
from attacks.rounds.columns import Box
from attacks.rounds.levels import variance_before
from attacks.rounds.noise import noise_of
from attacks.training import SGD
from attacks.types import GradientLeak, NotApplicable
from attacks.unrolled.problem import require_masks
from attacks.unrolled.simulation import Simulation, Weights
from attacks.victim.gradients import Array
from attacks.victim.network import Network
from attacks.victim.pixel_map import PixelMap
from attacks.victim.require import require_known_layers

GROUPS = 64
"""Of rounds in a row, at most, each of which is taken as one round."""
OTHERS_SIGMAS = 6.0
"""By how many standard deviations noise makes a round leave the common space, at most."""


@dataclass(frozen=True, eq=False)
class OneRound:
    """What one round shows.

    Args:
        chain: the network at the round's weights, with its gradients.
        sigmas: standard deviations of the noise on each layer's gradient, of its rows (D, 1) of the
            first one, (m, n) or (1, 1) of the others.
        norm: L2 bound that the gradients were clipped to before; None where none is told.
        levels: Δ of each layer's gradient, which was rounded to its multiples; empty where none
            was.
    """

    chain: FullyConnected
    sigmas: tuple[Array, ...]
    norm: float | None
    levels: tuple[Array, ...] = ()

    @property
    def first(self) -> Array:
        """The first layer's gradient, (D, d)."""
        return self.chain.layers[0].gradient

    @property
    def sigma(self) -> Array:
        """Of the first layer's rows, (D, 1)."""
        return self.sigmas[0]

    @property
    def rows(self) -> int:
        """Of the first layer's gradient, those that show anything."""
        return int(self.first.any(axis=1).sum())

    @property
    def moment(self) -> Array:
        """What the first layer's gradient adds to M, (d, d), noise alike in all columns."""
        moment = np.asarray((self.first / self.sigma**2).T @ self.first)
        if self.levels:
            noise = variance_before(self.levels[0], self.first) / self.sigma**2
            own = noise.sum(axis=0)
            moment[np.diag_indices_from(moment)] -= own - own.mean()
        return moment


@dataclass(frozen=True, eq=False)
class Rounds:
    """All rounds of a client, the latest last.

    Args:
        each: of them, or where they are many, groups of rounds in a row.
        count: how many rounds they are.
        span: V, (n, d), orthonormal rows; with a bias, its input is the last column.
        signal: what of `Σ_r ‖G_r v‖² / σ_r²` the examples leave, (n,); 0 where noise hides it.
        is_scaled: whether each round may have a factor on its gradients that isn't told.
        last: the network of the latest round.
        box: that inputs are in, with the bias's 1; None where nobody tells what pixels are.
    """

    each: tuple[OneRound, ...]
    count: int
    span: Array
    signal: Array
    is_scaled: bool
    last: FullyConnected
    box: Box | None = None

    @classmethod
    def of(cls, leaks: Sequence[GradientLeak]) -> Rounds:
        """Take a client's leaks apart.

        Raises:
            NotApplicable: they aren't of one step of a fully connected network with two-sloped
                activations each, noise hides an untold number of examples, or the rounds don't
                share their examples.
        """
        each = tuple(_round_of(leak) for leak in leaks)
        told = _examples_of(leaks)
        moment = sum(one.moment for one in each)
        values, vectors = np.linalg.eigh(moment)
        signal = _signal(values[::-1], sum(one.rows for one in each))
        size = int((signal > 0).sum()) if told is None else told
        if not 0 < size < len(values):
            raise NotApplicable(
                f"the number of examples is unknown, and noise hides it in {len(each)} rounds"
            )
        span = np.ascontiguousarray(vectors[:, ::-1][:, :size].T)
        _require_shared(each, span)
        groups = np.array_split(np.arange(len(each)), min(GROUPS, len(each)))
        some = tuple(_as_one([each[i] for i in group]) for group in groups)
        scaled = _is_scaled(leaks[-1].told)
        last = each[-1].chain
        return cls(some, len(each), span, signal[:size], scaled, last, _box(leaks[-1], last))

    @property
    def examples(self) -> int:
        """How many there are, n."""
        return len(self.span)

    @property
    def has_bias(self) -> bool:
        """Whether the first layer has one, whose input is 1."""
        return self.each[0].chain.layers[0].has_bias

    def spanned_by(self, rows: Array) -> Rounds:
        """Return the rounds with another span, that of rows (n, d)."""
        return dataclasses.replace(self, span=np.ascontiguousarray(np.linalg.qr(rows.T)[0].T))

    def simulations(self) -> list[Simulation]:
        """Return each round in the span's coordinates, as a step of a learning rate of 1."""
        return [Simulation.of(one.chain, self.span, SGD(1.0), 1) for one in self.each]

    def gradients(self, index: int) -> Weights:
        """Return what a round sent, the first layer's in the span's coordinates."""
        first, *above = [layer.gradient for layer in self.each[index].chain.layers]
        return tuple(torch.from_numpy(part) for part in (first @ self.span.T, *above))


def _as_one(rounds: Sequence[OneRound]) -> OneRound:
    """Return the mean of rounds, at the mean of their weights: to first order that is a round.

    Weights hardly move from one round to the next, and noise averages out.
    """
    if len(rounds) == 1:
        return rounds[0]
    shares = np.array([np.mean(one.sigma**2) ** -1 for one in rounds])
    layers = []
    for same in zip(*(one.chain.layers for one in rounds), strict=True):
        weight, gradient = (
            np.average([getattr(layer, part) for layer in same], axis=0, weights=shares)
            for part in ("weight", "gradient")
        )
        layers.append(dataclasses.replace(same[0], weight=weight, gradient=gradient))
    chain = dataclasses.replace(rounds[0].chain, layers=tuple(layers))
    sigmas = tuple(
        np.sqrt(sum((share * sigma) ** 2 for share, sigma in zip(shares, same, strict=True)))
        / shares.sum()
        for same in zip(*(one.sigmas for one in rounds), strict=True)
    )
    return OneRound(chain, sigmas, rounds[0].norm)


def _round_of(leak: GradientLeak) -> OneRound:
    """Take one leak apart.

    Raises:
        NotApplicable: it isn't of one step of such a network.
    """
    if leak.local_steps != 1:
        raise NotApplicable(
            "rounds are combined where each is one local step on all of a client's examples, found "
            f"{leak.local_steps} steps"
        )
    require_known_layers(leak)
    chain = FullyConnected.of(leak, Network.of(leak))
    require_masks(chain)
    told, lr = leak.told, leak.lr
    norms = [told.gradient_norm] if told.gradient_norm is not None else []
    if told.clipping_norm is not None and lr is not None:
        norms.append(told.clipping_norm / lr)
    sigmas, levels = noise_of(leak, chain)
    return OneRound(_without_rounding(chain), sigmas, min(norms, default=None), levels)


def _without_rounding(chain: FullyConnected) -> FullyConnected:
    """Return the network without what is as large as its weights, and hidden by noise."""
    nothing = np.zeros(())
    layers = (
        dataclasses.replace(layer, rounding=np.broadcast_to(nothing, layer.weight.shape))
        for layer in chain.layers
    )
    return dataclasses.replace(chain, layers=tuple(layers))


def _examples_of(leaks: Sequence[GradientLeak]) -> int | None:
    """Return n; None where no round tells.

    Raises:
        NotApplicable: rounds differ.
    """
    counts = sorted({leak.steps.distinct or 0 for leak in leaks})
    if len(counts) > 1:
        raise NotApplicable(f"the rounds differ in their number of examples: {counts}")
    return counts[0] or None


def _is_scaled(told: Told) -> bool:
    """Say whether rounds may have a factor that nobody tells: who knows nothing has to try."""
    return told.is_scaled or (
        told.clipping_norm is None and told.noise_std is None and not told.is_rounded
    )


def _signal(values: Array, rows: int) -> Array:
    """Return what of each eigenvalue, falling, the examples leave; 0 where noise hides it."""
    γ = len(values) / rows
    x = values / rows - 1 - γ
    is_seen = x > 2 * np.sqrt(γ)
    spike = np.where(is_seen, (x + np.sqrt(np.maximum(x**2 - 4 * γ, 0))) / 2, 1.0)
    return np.where(is_seen, rows * spike * (1 - γ / spike**2) / (1 + γ / spike), 0.0)


def _box(leak: GradientLeak, chain: FullyConnected) -> Box | None:
    """Return the range of the first layer's inputs; None where pixels' isn't told."""
    if leak.normalization is None:
        return None
    network = Network.of(leak)
    try:
        pixels = PixelMap.of(network, network.executed[0])
    except NotApplicable:
        return None
    black, white = (
        np.asarray(part.flatten().numpy()) for part in (pixels.offset, pixels.offset + pixels.slope)
    )
    one = np.ones(int(chain.layers[0].has_bias))
    ends = (np.concatenate([end(black, white), one]) for end in (np.minimum, np.maximum))
    return Box(*ends)


def _require_shared(each: Sequence[OneRound], span: Array) -> None:
    """Raise where a round's gradient leaves the common space by more than noise.

    Raises:
        NotApplicable: one does.
    """
    off = []
    if len(each) == 1:
        return  # whether the examples explain it is seen when they are found
    for one in each:
        first = one.first / one.sigma
        outside = float((first**2).sum() - ((first @ span.T) ** 2).sum())
        freedom = one.rows * (first.shape[1] - len(span))
        off.append((outside - freedom) / np.sqrt(2 * freedom))
    worst = int(np.argmax(off))
    if max(off[worst], sum(off) / np.sqrt(len(off))) > OTHERS_SIGMAS:
        raise NotApplicable(
            f"the {len(each)} rounds don't share their {len(span)} examples: the first layer's "
            f"gradient of number {worst + 1} leaves the space that all have in common by "
            f"{off[worst]:.3g} standard deviations of noise, more than {OTHERS_SIGMAS:g}"
        )
