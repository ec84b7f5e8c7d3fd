"""Step 1: the live units of a batch, and the space that its features span.

`G = (1/B) Σ_b (p_b − y_b) x_bᵀ` is whitened, `G_w = diag(1/r) G diag(1/c)` with r and c the noise
of its rows and columns, and split, `G_w = U S V + noise`. The rows of V (B, D) span the features:
with `x_b / c = Vᵀ q_b` each is B numbers. The columns of U span the `(p_b − y_b) / r`.

A unit that is dead for the whole batch is a column of zeros. It is dropped: it would count as a
zero of every ray, true or false.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attacks.types import GradientLeak, NotApplicable
from attacks.victim.gradients import HUGE, Layer, has_layer_gradient
from attacks.victim.network import Network

Array = NDArray[np.float64]

WORST_PRECISION = 0.03
"""Largest relative error of a feature at which rays are searched for."""
GAP = 10.0
"""Ratio of consecutive singular values that tells signal from noise where B is unknown."""
NOISE_BOUNDS = (0.1, 100.0)
"""Singular values of noise, in units of what float rounding explains, at least and at most: its
size is known roughly."""


def live_layer(leak: GradientLeak, network: Network) -> tuple[Layer, NDArray[np.bool_]]:
    """Return the last layer's live columns, and which of all D these are; a bias always counts.

    Raises:
        NotApplicable: its gradient is missing, not finite, zero, or equal for all classes.
    """
    layer = Layer.of(leak, network, network.head_name)
    if not np.ptp(layer.gradient, axis=0).max() > 1 / HUGE:
        raise NotApplicable("the last layer's gradient is equal for all classes")
    kept = np.asarray(layer.gradient.any(axis=0))
    live = kept[: len(kept) - layer.has_bias]
    return layer.only(np.append(live, True) if layer.has_bias else live), live


def noise_of_rows_and_columns(layer: Layer) -> tuple[Array, Array]:
    """Return r (K,) and c (D,), whose product is about the rounding's standard deviation."""
    square = layer.rounding**2
    rows = np.sqrt(square.mean(axis=1))
    rows = np.maximum(rows, 1e-12 * rows.max())
    columns = np.sqrt((square / rows[:, None] ** 2).mean(axis=0))
    if layer.has_bias:  # a bias that starts at 0 is hardly rounded; it mustn't outweigh all
        columns[-1] = max(columns[-1], np.median(columns))
    return rows, np.maximum(columns, 1e-12 * columns.max())


@dataclass(frozen=True, eq=False)
class Subspace:
    """`G_w ≈ U S V` of rank B, and what it was made of.

    Args:
        left: U, (K, B), orthonormal columns.
        values: S, (B,), falling.
        right: V, (B, D), orthonormal rows.
        rows: r, (K,).
        columns: c, (D,).
        sigma: rms of what is left of G_w; 1 if float rounding explains it.
        divisor: B of the mean, the rank unless B is told; the rank is lower if features repeat.
        source: the layer, its live columns only.
        live: which of all D columns these are; the bias isn't among them.
    """

    left: Array
    values: Array
    right: Array
    rows: Array
    columns: Array
    sigma: float
    divisor: int
    source: Layer
    live: NDArray[np.bool_]

    @cached_property
    def complement(self) -> Array:
        """Orthonormal columns beside U, (K, K − B)."""
        return np.asarray(np.linalg.qr(self.left, mode="complete")[0][:, self.batch_size :])

    @property
    def batch_size(self) -> int:
        """B, the rank."""
        return len(self.values)

    @property
    def precision(self) -> float:
        """`σ √D / S_B`, the worst relative error of a feature in the space."""
        return float(self.sigma * np.sqrt(self.right.shape[1]) / self.values[-1])

    @cached_property
    def logit_weight(self) -> Array:
        """W diag(c), (K, D): from a whitened feature to its logits."""
        return self.source.weight * self.columns

    def direction(self, q: Array) -> Array:
        """Return the whitened feature `Vᵀ q`, (D,)."""
        return q @ self.right

    def noise_of(self, q: Array) -> float:
        """Return the standard deviation of each entry of `Vᵀ q`: `σ ‖S⁻¹ q‖`."""
        return float(self.sigma * np.linalg.norm(q / self.values))


def find_subspace(leak: GradientLeak, network: Network) -> Subspace:
    """Whiten and split the last layer's gradient.

    Raises:
        NotApplicable: there is no gradient, more examples than it has rank for, no gap in the
            singular values where B is unknown, more rank than B examples have, or too much noise.
    """
    source, live = live_layer(leak, network)
    rows, columns = noise_of_rows_and_columns(source)
    return _split(source, live, rows, columns, leak.batch_size, _rank)


def hidden_subspace(layer: Layer, told: int | None) -> Subspace:
    """Whiten and split a hidden layer's gradient, its units in the place of the classes.

    Args:
        layer: with its gradient.
        told: B; None where it is to be found.

    Raises:
        NotApplicable: the gradient's rank isn't that of B examples, or too much noise.
    """
    kept = np.asarray(layer.gradient.any(axis=0))
    live = kept[: len(kept) - layer.has_bias]
    source = layer.only(np.append(live, True) if layer.has_bias else live)
    rows, columns = noise_of_rows_and_columns(source)
    # A sum that cancels isn't rounded relative to itself; and a small row says as little.
    rows = np.maximum(rows, np.sqrt(np.mean(rows**2)))

    def rank(values: Array, shape: tuple[int, int], told: int | None) -> int:
        return signal_size(values, shape, told, f"layer {layer.name!r}")

    return _split(source, live, rows, columns, told, rank)


def _split(
    source: Layer,
    live: NDArray[np.bool_],
    rows: Array,
    columns: Array,
    told: int | None,
    rank: Callable[[Array, tuple[int, int], int | None], int],
) -> Subspace:
    """Whiten a gradient by the noise of its rows and columns, and split it at its rank."""
    whitened = source.gradient / rows[:, None] / columns
    left, values, right = np.linalg.svd(whitened, full_matrices=False)
    size = rank(values, (len(rows), len(columns)), told)
    freedom = (len(rows) - size) * (len(columns) - size)
    sigma = float(np.sqrt((values[size:] ** 2).sum() / freedom)) if freedom > 0 else 1.0
    space = Subspace(
        left[:, :size],
        values[:size],
        np.ascontiguousarray(right[:size]),
        rows,
        columns,
        max(sigma, 1e-3),
        told or size,
        source,
        live,
    )
    if not space.precision <= WORST_PRECISION:
        raise NotApplicable(
            f"noise and rounding leave the features of {size} examples uncertain by "
            f"{space.precision:.0%}, more than {WORST_PRECISION:.0%}"
        )
    return space


def signal_rank(leak: GradientLeak, network: Network, name: str) -> int | None:
    """Return how many examples stand out of a layer's noise; None where no gap tells.

    Args:
        leak: what is attacked.
        network: a view of its model.
        name: of a linear layer.
    """
    if not has_layer_gradient(leak, network, name):
        return None
    layer, is_head = Layer.of(leak, network, name), name == network.head_name
    layer = layer.only(np.asarray(layer.gradient.any(axis=0)))
    rows, columns = noise_of_rows_and_columns(layer)
    values = np.linalg.svd(layer.gradient / rows[:, None] / columns, compute_uv=False)
    shape = layer.gradient.shape
    return _gap(values[: min(shape[0] - is_head, shape[1])], np.sqrt(shape[0]) + np.sqrt(shape[1]))


def _gap(values: NDArray[np.floating[Any]], noise: float) -> int | None:
    """Return after which singular value the signal ends, by the largest gap; None without one.

    Args:
        values: falling.
        noise: the largest that float rounding is expected to make, roughly; below a tenth of it
            there are no gaps, however the values fall: rounding may be of low rank itself.
    """
    floor = np.maximum(values[1:], max(NOISE_BOUNDS[0] * noise, 1e-15 * values[0]))
    gaps = values[:-1] / floor
    gaps[floor > NOISE_BOUNDS[1] * noise] = 0
    return int(np.argmax(gaps)) + 1 if len(gaps) and gaps.max() >= GAP else None


def _rank(values: Array, shape: tuple[int, int], told: int | None) -> int:
    """Return the rank of the last layer's signal, at most B where B is told.

    Raises:
        NotApplicable: see `find_subspace`.
    """
    most = min(shape[0] - 1, shape[1])
    if told is not None and told > most:
        raise NotApplicable(
            f"{told} examples are more than the last layer's rank allows: {shape[0]} classes and "
            f"{shape[1]} live units leave at most {most}"
        )
    return signal_size(values[:most], shape, told, "the last layer")


def signal_size(values: Array, shape: tuple[int, int], told: int | None, layer: str) -> int:
    """Return the rank of a layer's signal, at most B where B is told.

    Args:
        values: the singular values of its whitened gradient, falling.
        shape: of that gradient.
        told: B; None where it is to be found.
        layer: in words.

    Raises:
        NotApplicable: no gap in the singular values where B is unknown, or more rank than B
            examples have, or less than B allows.
    """
    found = _gap(values, np.sqrt(shape[0]) + np.sqrt(shape[1]))
    if told is None:
        if found is None:
            raise NotApplicable(
                "the number of examples is unknown, and no gap in the singular values of "
                f"{layer}'s gradient shows it"
            )
        return found
    if found is not None and found > told:
        raise NotApplicable(
            f"{layer}'s gradient has rank {found}, more than {told} examples explain: "
            "several steps, or a defense that changes entries one by one"
        )
    return min(told, found or told, len(values))
