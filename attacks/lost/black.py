"""Pixels of lost columns that are as black as others are.

[ours] Of an image that is black in many places, inputs there are all `t · black`, t the scale that
it is known up to, and no pixel is darker: the largest t of which many known pixels are. A lost
pixel that is as dark within its error most likely is one of them; whether all these together are
shows in what was sent, which a wrong one would fit worse.
"""

from __future__ import annotations

import numpy as np

from attacks.numerics.least_squares import BAR
from attacks.victim.gradients import Array

ALIKE_BLACK = 1e-4
"""How far inputs of black pixels are apart, relative."""
MANY_BLACK = 0.05
"""Share of the known pixels that are black, at least."""


def with_black(inputs: Array, std: Array, black: Array) -> Array:
    """Return inputs (B, n) with those of lost pixels that are black within their error as such.

    Args:
        inputs: of any positive scale each.
        std: standard deviations (B, n), 0 of pixels that weren't lost, infinite of those left open.
        black: the input (n,) on a black image.
    """
    found = inputs.copy()
    for row, error, own in zip(found, std, inputs, strict=True):
        known = error == 0
        t = scale_of_black(own[known], black[known])
        if t is not None:
            dark = ~known & np.isfinite(error) & (np.abs(own - t * black) <= BAR * error)
            row[dark] = t * black[dark]
    return found


def scale_of_black(known: Array, black: Array) -> float | None:
    """Return t; None where few pixels are black, or nothing tells."""
    if not black.all() or not len(black):
        return None if black.any() else 0.0
    t = np.sort(known / black)[::-1]
    for top in t[: max(len(t) // 100, 1)]:  # single ones may err
        alike = t[np.abs(t - top) <= ALIKE_BLACK * np.abs(top)]
        if len(alike) >= MANY_BLACK * len(t):
            return float(np.median(alike))
    return None
