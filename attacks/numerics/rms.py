"""Root mean squares."""

from __future__ import annotations

from torch import Tensor


def rms(values: Tensor) -> float:
    """Return the root mean square of all values."""
    return float(values.square().mean().sqrt())


def row_rms(rows: Tensor) -> Tensor:
    """Return each row's root mean square, (N,), of values (N, …)."""
    return rows.flatten(1).square().mean(dim=1).sqrt()
