"""Examples whose training was repeated, and by what they are judged."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attacks.unrolled.refine import Refined
from attacks.unrolled.solve import MET

REPLAY_MISFIT = 3e-5
"""Of the whole update, relative, root mean square: right examples leave 1e-7 to 5e-6."""
MOST_ROUNDING = 1e-4
"""Of the whole update, likewise: wrong examples leave 1e-2 and more, the right ones up to ten times
what rounding does, and in between there must be room."""
TIED_FROM = 5
"""Classes from which labels equal in all but two entries say less than free ones."""
BAR_SIGMAS = 10.0
"""Of what is known of an example, standard deviations in its error bar."""
LEAST_BAR = 1e-6
"""Of a label: it came in float32."""
OTHER_TRAINING = (
    "the training of the examples found leaves an update that differs from what was sent by "
    "{:.1g}, where rounding leaves {:.1g}: steps, examples, optimizer or weights are others than "
    "was told, or masks change too much on the way"
)
BURIED = (
    "rounding is {:.1g} of the update, more than {:g}: that other examples leave another update "
    "wouldn't show"
)
NO_LABEL = "its label leaves [0, 1]: the loss, or the training, is another one"


@dataclass(frozen=True, eq=False)
class Replay:
    """Examples, as the training that they leave says.

    Args:
        inputs: of the first layer, (n, d), without the bias's 1.
        features: of the last, at the weights that the client started from, (n, D).
        labels: (n, K).
        label_bars: L∞, (n,).
        input_bars: root mean square error of the inputs, (n,).
        typical: the median residual, in units of rounding.
        reasons: why nothing is claimed, example by example; None where the test was passed.
    """

    inputs: Tensor
    features: Tensor
    labels: Tensor
    label_bars: Tensor
    input_bars: Tensor
    typical: float
    reasons: tuple[str | None, ...]


def judged(found: Refined, misfit: float, usual: float) -> tuple[Tensor, tuple[str | None, ...]]:
    """Return the labels' error bars (n,), L∞, and why nothing is claimed of each example.

    Args:
        found: the examples.
        misfit: of the whole update, relative.
        usual: what of that rounding leaves.
    """
    labels = found.client.labels
    bars = (BAR_SIGMAS * found.noise * found.spread.labels).amax(dim=1).clamp(min=LEAST_BAR)
    reason = None
    if not (found.typical < MET and misfit < max(REPLAY_MISFIT, MET * usual)):
        reason = OTHER_TRAINING.format(misfit, usual)
    elif not usual <= MOST_ROUNDING:
        reason = BURIED.format(usual, MOST_ROUNDING)
    inside = (labels >= -bars[:, None]) & (labels <= 1 + bars[:, None])
    return bars, tuple(
        reason or (None if fits else NO_LABEL) for fits in inside.all(dim=1).tolist()
    )
