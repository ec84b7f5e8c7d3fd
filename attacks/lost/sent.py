"""Which entries of a gradient were sent, and how far others agree with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attacks.victim.gradients import Array, Layer

Mask = NDArray[np.bool_]
"""(m, n), which entries of a layer's gradient there are; or (m,), which rows or columns."""


def misfit(layers: Sequence[Layer], sent: Sequence[Mask], found: Sequence[Array]) -> float:
    """Return how far gradients miss the entries that were sent, relative to these.

    Args:
        layers: with what came of their gradients.
        sent: which of each one's entries that is.
        found: each one's gradient.
    """
    parts = [
        (layer.gradient[there], own[there])
        for layer, own, there in zip(layers, found, sent, strict=True)
    ]
    size = sum(float(np.square(came).sum()) for came, _ in parts)
    rest = sum(float(np.square(came - own).sum()) for came, own in parts)
    return float(np.sqrt(rest / size)) if size > 0 else np.inf
