"""Pixels of lost columns where few are lighter than black: by non-negative least squares.

[ours] On a core's rows each example's δ is known, and where it is zero the unit was shut. So the
entries that were sent in a column of the layer above are equations in this unit's outputs a_bi for
those examples alone for which it was on,

    B ∂L/∂V_ji = Σ_{b: i on} δ_bj a_bi,

and these, up to a factor s_b, are equations in the pixels: `W_i x_b = s_b a_bi`. No pixel is darker
than black, `x_b = t_b black + y_b` with y_b ≥ 0. Where most lost ones are black, y_b is sparse, and
non-negative least squares finds it by fewer equations than pixels (M. Slawski, M. Hein,
"Non-negative least squares for high-dimensional linear models", Electron. J. Stat. 2013). What that
takes for noise is left out: of the lightest pixels, as few as meet all equations, which have to be
more than these. An example found so leaves fewer unknowns in every column for the others, by turns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from attacks.lost.sent import Mask
from attacks.numerics.least_squares import left_inverse
from attacks.victim.gradients import Array, Layer

TOLD_BY_COLUMN = 1e-4
"""Error, relative to what a column is made of, up to which its entries tell it."""
AGREE_WITH_BLACK = 2e-5
"""How far entries of a column of black pixels may be off, relative."""
LEAST_OUTPUT, ERROR_OF_OUTPUTS = 1e-3, 1e-6
"""What outputs that are used are at least, and their errors by those of δ, relative to their root
mean square."""
ZERO_DELTA = 3e-5
"""δ up to this one, relative to their root mean square, counts as zero."""
SPARE_OUTPUTS = 1.4
"""Outputs for each lit pixel, at least."""
LIT_AT_ONCE = 4
"""Pixels by which those that are taken as lit grow, until outputs are met."""
MOST_REST = 5.0
"""What outputs may leave unexplained, root mean square in standard deviations."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a layer's gradient of which δ is known.

    Args:
        delta: δ / B, (B, r), up to a factor for each example.
        gradient: (r, n).
        sent: (r, n), which entries of it there are.
        std: error of an entry.
    """

    delta: Array
    gradient: Array
    sent: Mask
    std: float

    @classmethod
    def of(cls, layer: Layer, sent: Mask, rows: Mask, delta: Array) -> Rows:
        """Take rows (m,) of a layer, without the bias's column."""
        width = layer.weights.shape[1]
        std = float(np.sqrt(np.mean(layer.rounding[:, :width] ** 2)))
        return cls(delta, layer.gradient[rows, :width], sent[rows, :width], std)

    @classmethod
    def of_head(cls, head: Layer, sent: Mask, units: Mask, below: Array) -> Rows:
        """Take the last layer, with the δ that those below, (B, u) of units (m,), come from."""
        weights = head.weights[:, units]
        delta = [
            np.linalg.lstsq(weights[:, on].T, row[on], rcond=None)[0]
            for row, on in zip(below, is_on(below), strict=True)
        ]
        return cls.of(head, sent, np.ones(len(weights), dtype=bool), np.array(delta))

    def only(self, columns: Mask) -> Rows:
        """Return some columns alone."""
        return replace(self, gradient=self.gradient[:, columns], sent=self.sent[:, columns])

    def told(self, inputs: Array, known: Mask) -> tuple[Array, Array]:
        """Return inputs (B, n) as entries tell those that aren't known, and their errors.

        An error is infinite where entries are fewer than the unknowns of their column.
        """
        found, error = inputs.copy(), np.where(known, 0.0, np.inf)
        for column, there in enumerate(self.sent.T):
            free = ~known[:, column]
            if not 0 < free.sum() <= there.sum():
                continue
            design, rest = self.delta[:, there].T, self.gradient[there, column]
            inverse = left_inverse(design[:, free])
            found[free, column] = inverse @ (rest - design[:, ~free] @ inputs[~free, column])
            error[free, column] = self.std * np.linalg.norm(inverse, axis=1)
        return found, error

    def agree(self, inputs: Array) -> Mask:
        """Say which inputs (B, n) have a part in entries of their column, all as these leave them.

        Of an example for which the units of all entries were shut, they say nothing.
        """
        off = np.where(self.sent, self.gradient - self.delta.T @ inputs, 0.0)
        size = np.linalg.norm(np.where(self.sent, self.gradient, 0.0), axis=0)
        agrees = np.linalg.norm(off, axis=0) <= AGREE_WITH_BLACK * size
        return np.asarray(agrees & (is_on(self.delta).astype(int) @ self.sent > 0))


def is_on(delta: Array) -> Mask:
    """Say for which units δ (B, u) isn't zero, up to its error."""
    return np.asarray(np.abs(delta) > ZERO_DELTA * np.sqrt(np.mean(delta**2, axis=1))[:, None])


def with_lit(
    layer: Layer, own: Rows, above: Rows, units: Mask, on: Mask, start: Array, core: Mask
) -> tuple[Array, Array] | None:
    """Return inputs with their lost pixels, and standard deviations; None where some stay open.

    Args:
        layer: the first.
        own: its rows.
        above: rows of the layer above, in the columns of these units.
        units: (m,), those of `own`.
        on: (B, these), whether they are on.
        start: inputs (B, n), black where they aren't known.
        core: (n,), which are.
    """
    whole, std, weight = start.copy(), np.zeros_like(start), layer.weight[units]
    told = core | own.agree(start)
    size = float(np.sqrt(np.mean(start**2)))
    outputs, certain = np.zeros(on.shape), ~on
    left = set(range(len(start)))
    while left:
        found, error = own.told(whole, told)
        new = ~told & (error <= TOLD_BY_COLUMN * size)
        whole[new], std[new], told = found[new], error[new], told | new
        values, error = above.told(outputs, certain)
        before = len(left)
        for b in sorted(left):
            used, errors = _used(values[b], error[b], on[b])
            free, known = ~told[b], layer.augmented(whole[b : b + 1])[0] @ weight.T
            design = weight[used][:, np.flatnonzero(free)]
            lit = _lit(design, values[b, used], known[used], errors)
            if lit is None:
                continue
            change, std[b, free], scale = lit
            whole[b, free] += change
            outputs[b, on[b]] = (layer.augmented(whole[b : b + 1])[0] @ weight.T)[on[b]]
            outputs[b] /= scale
            told[b], certain[b] = True, True
            left.remove(b)
        if len(left) == before:
            return None
    return whole, std


def _used(values: Array, error: Array, on: Mask) -> tuple[Mask, Array]:
    """Return which of an example's outputs (u,) are told, and the errors of those."""
    told = np.isfinite(error)
    typical = float(np.linalg.norm(values[told])) / max(int(told.sum()), 1) ** 0.5
    used = on & (values > LEAST_OUTPUT * typical) & (error <= TOLD_BY_COLUMN * typical)
    return used, error[used] + ERROR_OF_OUTPUTS * typical


def _lit(
    weight: Array, outputs: Array, known: Array, errors: Array
) -> tuple[Array, Array, float] | None:
    """Return y (P,) ≥ 0, its errors, and s, with `weight y + known = s outputs`; None where open.

    Args:
        weight: (u, P).
        outputs: (u,).
        known: (u,), what all other pixels give.
        errors: (u,), of the outputs.
    """
    if not len(outputs):
        return None
    system = np.column_stack([weight, -outputs]) / errors[:, None]
    right = -known / errors
    sizes = np.linalg.norm(system, axis=0)
    try:
        y = nnls(system / sizes, right)[0] / sizes
    except RuntimeError:  # too many iterations
        return None
    order = np.append(len(y) - 1, np.argsort(-y[:-1], kind="stable"))  # the scale, the lightest, …
    most = min(int(len(right) / SPARE_OUTPUTS), LIT_AT_ONCE + int((y[:-1] > 0).sum()))
    for count in range(1, most + 1, LIT_AT_ONCE):
        kept = order[:count]
        inverse = left_inverse(system[:, kept])
        solution = inverse @ right
        rest = float(np.linalg.norm(system[:, kept] @ solution - right))
        if rest <= MOST_REST * len(right) ** 0.5:
            break
    else:
        return None
    found, error = np.zeros(len(y)), np.zeros(len(y))
    found[kept] = solution
    error[kept] = np.linalg.norm(inverse, axis=1) * max(rest / len(right) ** 0.5, 1.0)
    return found[:-1], error[:-1], float(solution[0])
