"""Step 1: the two-valued equations of a hidden layer, `u_i·q ∈ {low · T_i·t, T_i·t}`.

Rows of units that are dead for the whole batch are left out: they hold for any q.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from attacks.batch.subspace import noise_of_rows_and_columns, signal_size
from attacks.dense.network import FullyConnected
from attacks.masks.always_on import AlwaysOn
from attacks.types import NotApplicable
from attacks.victim.gradients import Array, Layer

WORST_PART = 0.3
"""Largest relative error of an example's part of the layer's gradient at which masks are tried."""
NOISE_FROM = 4.0
"""Noise, in units of what float rounding explains, from which it is no rounding."""
SPARE_UNITS = 2.0
"""Live units for each unknown of a pair, at least: with fewer, masks of no example fit as well."""
CLEAR_RANK = 1e-5
"""Relative rounding up to which the next layer's gradient says which space e lies in."""


@dataclass(frozen=True, eq=False)
class MaskEquation:
    """A layer's gradient, whitened and split, `G_w = U S V`, beside the space of `W_{l+1}ᵀ e`.

    Args:
        left: U, (D, R), orthonormal columns; D live units, R examples of different inputs.
        values: S, (R,), falling.
        right: V, (R, n), orthonormal rows; with a bias, its input is the last column.
        targets: T, (D, r), orthonormal columns.
        target_error: of T, relative.
        low: the activation's slope below 0.
        sigma: rms of what is left of G_w, about 1.
        noise: standard deviation of G's entries that rounding doesn't explain; 0 if it does.
        rows: what whitening divided the rows by, (D,).
        columns: likewise, (n,).
        source: the layer, its live rows only.
        live: which of all units these are.
    """

    left: Array
    values: Array
    right: Array
    targets: Array
    target_error: float
    low: float
    sigma: float
    noise: float
    rows: Array
    columns: Array
    source: Layer
    live: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        network: FullyConnected,
        index: int,
        told: int | None,
        *,
        is_above_whole: bool = True,
    ) -> MaskEquation:
        """Take the layer with that index, and the one above it.

        Args:
            network: ends with the last layer.
            index: of the layer, not the last.
            told: B; None where it is to be found.
            is_above_whole: whether the next layer's gradient has all its entries; of the last one
                it isn't asked then.

        Raises:
            NotApplicable: its activation isn't two-sloped, the rank isn't that of B examples, noise
                hides them, or the layer has too few live units.
        """
        low = network.activations[index].low
        source, above = network.layers[index], network.layers[index + 1]
        if low is None or not low < 1:
            raise NotApplicable(
                f"behind layer {source.name!r} stands {network.activations[index].name}: examples "
                "of a batch are told apart by the two slopes of a ReLU or leaky ReLU"
            )
        live = np.asarray(source.gradient.any(axis=1))
        source = _only_rows(source, live)
        noise = _noise_of(source, told)
        source = dataclasses.replace(source, rounding=np.hypot(source.rounding, noise))
        rows, columns = noise_of_rows_and_columns(source)
        # A sum that cancels isn't rounded relative to itself; and a small row says as little.
        rows = np.maximum(rows, np.sqrt(np.mean(rows**2)))
        whitened = source.gradient / rows[:, None] / columns
        left, values, right = np.linalg.svd(whitened, full_matrices=False)
        size = signal_size(values, whitened.shape, told, f"layer {source.name!r}")
        freedom = (len(rows) - size) * (len(columns) - size)
        sigma = float(np.sqrt((values[size:] ** 2).sum() / freedom)) if freedom > 0 else 1.0
        is_last = network.ends_in_logits and index + 2 == len(network.layers)
        is_free = is_last and not is_above_whole
        targets, target_error = handed_down(above, size, live, rows, is_last, is_free)
        found = cls(
            np.ascontiguousarray(left[:, :size]),
            values[:size],
            np.ascontiguousarray(right[:size]),
            targets,
            target_error,
            low,
            max(sigma, 1e-3),
            noise,
            rows,
            columns,
            source,
            live,
        )
        found._require_enough()
        return found

    @property
    def size(self) -> int:
        """R, the rank."""
        return len(self.values)

    @property
    def unknowns(self) -> int:
        """Of a pair (q, t), but for its scale."""
        return self.size + int(self.targets.shape[1]) - 1

    @cached_property
    def parts(self) -> Array:
        """`U S`, (D, R): in its coordinates `S⁻¹ q`, each entry of `U q` has the noise σ."""
        return self.left * self.values

    @cached_property
    def outputs(self) -> Array:
        """(n, D): from the layer's whitened inputs, as V's rows, to its live units' outputs."""
        return np.ascontiguousarray((self.source.weight * self.columns).T)

    def within(self, basis: Array) -> MaskEquation:
        """Return the equations of those q alone that are `basis` (R, k) times k numbers."""
        return dataclasses.replace(self, left=self.left @ basis)

    @cached_property
    def always_on(self) -> AlwaysOn | None:
        """The units that are on for all examples, where there are enough to show it."""
        return AlwaysOn.of(self.left, self.targets, self.low, self.precision)

    @property
    def mixed(self) -> int:
        """How many live units may differ between examples; no others tell them apart."""
        known = self.always_on
        return len(self.left) - (0 if known is None else int((known.is_on | known.is_off).sum()))

    def with_known(self, masks: Array) -> Array:
        """Return masks (N, D) with those of units that are the same for all examples."""
        if self.always_on is None:
            return masks
        masks = np.where(self.always_on.is_on, 1.0, masks)
        return np.where(self.always_on.is_off, 0.0, masks)

    @property
    def precision(self) -> float:
        """`σ √D / S_R`, the worst relative error of a δ in the space."""
        return float(self.sigma * np.sqrt(len(self.left)) / self.values[-1])

    def _require_enough(self) -> None:
        """Raise unless masks can tell examples apart.

        Raises:
            NotApplicable: too much noise, or too few units.
        """
        name, units = self.source.name, len(self.left)
        if not self.precision <= WORST_PART:
            raise NotApplicable(
                f"noise and rounding leave the parts of {self.size} examples in the gradient of "
                f"layer {name!r} uncertain by {self.precision:.0%}, more than {WORST_PART:.0%}"
            )
        if not self.target_error <= WORST_PART:
            raise NotApplicable(
                f"noise and rounding hide in which space the layer above {name!r} hands down what "
                f"{self.size} examples give; in units of its smallest part: {self.target_error:.2g}"
            )
        if units < SPARE_UNITS * self.unknowns:
            raise NotApplicable(
                f"layer {name!r} has {units} live units for the {self.unknowns} unknowns of each "
                f"of {self.size} examples; their masks take {SPARE_UNITS:g} times as many"
            )
        if self.mixed < self.size:
            raise NotApplicable(
                f"of the {units} live units of layer {name!r}, only {self.mixed} aren't on for all "
                f"{self.size} examples: too few to tell them apart"
            )


def _only_rows(layer: Layer, rows: NDArray[np.bool_]) -> Layer:
    return dataclasses.replace(
        layer,
        weight=layer.weight[rows],
        gradient=layer.gradient[rows],
        rounding=layer.rounding[rows],
    )


def _noise_of(layer: Layer, told: int | None) -> float:
    """Return the standard deviation of what B examples leave of a gradient; 0 for rounding.

    Noise is the same in all entries, where rounding is small in small ones.
    """
    gradient = layer.gradient
    size = min(told or len(gradient) // 2, min(gradient.shape) - 1)
    values = np.linalg.svd(gradient, compute_uv=False)
    freedom = (gradient.shape[0] - size) * (gradient.shape[1] - size)
    noise = float(np.sqrt((values[size:] ** 2).sum() / freedom))
    return noise if noise > NOISE_FROM * float(np.sqrt(np.mean(layer.rounding**2))) else 0.0


def handed_down(
    above: Layer,
    size: int,
    live: NDArray[np.bool_],
    rows: Array,
    is_last: bool,
    is_free: bool = False,
) -> tuple[Array, float]:
    """Return T (D, r), an orthonormal basis of what a layer hands down, and its relative error.

    Args:
        above: the layer, with its gradient.
        size: R.
        live: units of the layer below, D of them.
        rows: what whitening divides these by, (D,).
        is_last: whether it is the last layer.
        is_free: whether its gradient isn't asked: of the last layer's e, sums of 0 are known.
    """
    if is_free:
        basis, error = sums_of_zero(len(above.gradient)), 0.0
    else:
        basis, error = _space_of(above, size, len(rows), is_last=is_last)
    weighted = (above.weights.T @ basis)[live] / rows[:, None]
    return np.asarray(np.linalg.qr(weighted)[0]), error


def _space_of(above: Layer, size: int, units: int, *, is_last: bool) -> tuple[Array, float]:
    """Return an orthonormal basis (m, r) of the space that all e lie in, and its relative error.

    Of the last layer all vectors of sum 0 are such a space, without an error: taken where the
    gradient's rank doesn't say less, or not clearly, and there are units enough.
    """
    outputs = len(above.gradient)
    left, values, _ = np.linalg.svd(above.gradient, full_matrices=False)
    rounding = float(np.linalg.norm(above.rounding, axis=0).max())
    kept = min(size, len(values))
    error = rounding / max(float(values[kept - 1]), 1e-300)
    is_affordable = units >= 2 * SPARE_UNITS * (size + outputs)
    if is_last and (size >= outputs - 1 or (error > CLEAR_RANK and is_affordable)):
        return sums_of_zero(outputs), 0.0
    return np.asarray(left[:, :kept]), error


def sums_of_zero(count: int) -> Array:
    """Return an orthonormal basis (count, count − 1) of the vectors that sum to 0."""
    ones = np.ones((count, 1))
    return np.asarray(np.linalg.qr(np.hstack([ones, np.eye(count)[:, 1:]]))[0][:, 1:])
