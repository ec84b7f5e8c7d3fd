"""What rounding to levels does to a gradient's entries: noise whose size each entry tells.

[ours] QSGD sends of `v = ∂L/∂W` the entries `Δ k`, k whole, `Δ = ‖v‖ / s`, up or down with the mean
kept (D. Alistarh et al., NeurIPS 2017, arXiv 1610.02132, section 3.1). So Δ is what all entries are
multiples of, and with f the part of `|v_ij| / Δ` behind the point, the noise has the variance

    Δ² f (1 − f),

which is what v itself makes it: none where v is 0, as at units that were off. Before v is known,
its rows' and columns' sums tell its size, `|v_ij| ≈ R_i C_j / S`, as those of counts do.
"""

from __future__ import annotations

import numpy as np

from attacks.facts import Quantized
from attacks.types import GradientLeak
from attacks.victim.gradients import Array, parameters_of
from attacks.victim.network import Network

WHOLE = 6.0
"""How far an entry may be from a whole number of levels, in standard deviations of its rounding."""
SEEN = 0.05
"""Rounding of the weights, in levels, beyond which it hides the levels."""
LOOSE = 1.1
"""How far the norm that is sent may be off, which the noise adds to, beside what that explains."""
COUNTS = 0.5
"""What is added to each row's and column's count of levels: none may be had by chance."""


def levels_told(leak: GradientLeak) -> int | None:
    """Return s, if the client's last stage is told to round to levels; None otherwise."""
    last = [fact.levels for fact in leak.knowledge if isinstance(fact, Quantized)]
    return last[-1] if last else None


def spacings(leak: GradientLeak, network: Network, name: str) -> tuple[float, ...] | None:
    """Return Δ of a layer's weight and, if it has one, of its bias; None where none is to be seen.

    Args:
        leak: with a `Quantized` fact.
        network: a view of its model.
        name: of the layer.
    """
    levels = levels_told(leak)
    if levels is None:
        return None
    found = []
    for part in parameters_of(network, name):
        gradient = leak.gradients[part].detach().double().flatten().numpy()
        found.append(spacing(gradient, leak.rounding(part).flatten().numpy(), levels))
    known = tuple(one for one in found if one is not None)
    return known if len(known) == len(found) else None


def spacing(entries: Array, rounding: Array, levels: int) -> float | None:
    """Return the Δ that all entries (N,) are multiples of, the largest; None without one.

    Args:
        entries: what was sent.
        rounding: standard deviations of these by float rounding, (N,).
        levels: s, which with the norm says how large Δ is, roughly.
    """
    size, own = np.abs(entries), float(np.sqrt(np.mean(rounding**2)))
    norm = float(np.linalg.norm(entries))
    if not norm > 0:
        return None
    # No entry is off by more than Δ, nor by more than Δ / 2 in the mean; the mean is kept.
    root = len(entries) ** 0.5
    least = norm / min(levels + root, LOOSE * float(np.hypot(levels, root / 2)))
    most = norm / max(levels - root, levels / LOOSE)
    smallest = float(size[size > 0.5 * least].min(initial=norm))
    for multiple in range(int(np.ceil(smallest / most)), int(smallest / least) + 1):
        Δ = smallest / max(multiple, 1)
        for _ in range(3):  # larger entries tell Δ more exactly, once it says how many levels
            k = np.round(size / Δ)
            Δ = float((size @ k) / (k @ k))
        off = np.abs(size - k * Δ)
        if own <= SEEN * Δ and (off <= WHOLE * np.maximum(rounding, own) + 1e-9 * size).all():
            return Δ
    return None


def variance_at(Δ: Array | float, v: Array) -> Array:
    """Return the variance `Δ² f (1 − f)` that rounding leaves in entries v."""
    place = np.abs(v) / Δ
    f = place - np.floor(place)
    return np.asarray(Δ**2 * f * (1 - f))


def variance_before(Δ: Array | float, sent: Array) -> Array:
    """Return what it is in the mean, by the rows' and columns' sums of what was sent (m, n)."""
    k = np.abs(sent) / Δ
    # Entries of that size in the mean, exponentially distributed.
    return variance_about(Δ, Δ * _product(k))


def variance_about(Δ: Array | float, v: Array) -> Array:
    """Return what it is in the mean at entries of about v in size, exponentially distributed."""
    return np.asarray(Δ**2 * _mean_of_parts(np.abs(v) / Δ))


def _product(k: Array) -> Array:
    rows = k.sum(axis=1, keepdims=True) + COUNTS
    columns = k.sum(axis=0, keepdims=True) + COUNTS
    return np.asarray(rows * columns / (k.sum() + COUNTS))


def _mean_of_parts(mean: Array) -> Array:
    """Return E f (1 − f) for exponentially distributed x of a mean, f its part behind the point.

    f has the density `e^(−f/m) / (m (1 − e^(−1/m)))` on [0, 1].
    """
    m = np.clip(mean, 1e-9, 30.0)  # beyond, floats cancel
    rest = 1 / np.expm1(1 / np.maximum(m, 2e-3))
    return np.asarray((m - rest) * (1 - 2 * m) + rest)
