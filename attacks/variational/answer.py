"""What is answered of the examples behind a bottleneck.

RECOVERED of an image needs that the encoder's gradient is the examples' own, that handed down it
gives their parts of the first layer's, and an error bar below the tolerance; of a label, that all
that tells the draws and the errors of the logits twice agrees, too: the derivatives at more
variables than there are classes, the decoder's gradient and the last layer's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attacks.answers import ExampleImage, ExampleLabel, LabelRecovery, Reconstruction, Status, known
from attacks.dense.pixel_range import in_range
from attacks.facts import Bottleneck
from attacks.masks.examples import WRONG_SHARE, Examples, Parts
from attacks.numerics.least_squares import BAR
from attacks.numerics.rms import row_rms
from attacks.types import GradientLeak, NotApplicable
from attacks.variational.draws import Drawn, drawn_of
from attacks.variational.examples import Bottlenecked, examples_below
from attacks.victim.kept import kept_with
from attacks.victim.network import Network
from attacks.victim.pixel_map import STRAYS, PixelMap

MOST_MISFIT_OF_DRAWS = 10.0
"""Misfit of right labels, at most; see `Drawn`. Of a wrong draw it is thousands."""
OTHERS = "the encoder's gradient isn't that of the examples that the layers before it show"
NO_WAY_BACK = "the derivatives at the encoder, handed down, don't give the example's own part"


@dataclass(frozen=True, eq=False)
class Behind:
    """The examples behind a bottleneck.

    Args:
        parts: theirs of the first layer's gradient.
        examples: their way to the encoder.
        draws: what was drawn for them, or why that isn't known.
    """

    parts: Parts
    examples: Examples
    draws: Drawn | str

    def doubt(self, row: int) -> str | None:
        """Return why nothing is claimed of an example's image; None where nothing speaks so."""
        if not (self.examples.is_whole and self.parts.is_clear[row]):
            return OTHERS
        return None if self.examples.returns[row] <= WRONG_SHARE else NO_WAY_BACK


def has_bottleneck(leak: GradientLeak) -> bool:
    """Say whether a bottleneck is told, and that nothing else hides what it leaves.

    A gradient that was scaled, or of which entries were left out or rounded, is another one.
    """
    told = leak.told
    is_other = told.is_scaled or told.has_lost_entries or told.is_rounded
    return not is_other and any(isinstance(fact, Bottleneck) for fact in leak.knowledge)


def behind(leak: GradientLeak) -> Behind:
    """Find the examples behind a leak with a bottleneck; kept with the leak.

    Draws are its own, so that all attacks find the same.

    Raises:
        NotApplicable: the batch size isn't told, or the layers up to the encoder don't show all
            examples.
    """
    return kept_with(leak, "_behind_bottleneck", lambda: _behind(leak))


def _behind(leak: GradientLeak) -> Behind:
    if leak.batch_size is None:
        raise NotApplicable("the batch size is unknown")
    network = Bottlenecked.of(leak, Network.of(leak))
    generator = torch.Generator().manual_seed(0)
    parts, examples = examples_below(network, leak.batch_size, generator)
    draws: Drawn | str
    try:
        draws = drawn_of(network, examples)
    except NotApplicable as reason:
        draws = str(reason)
    return Behind(parts, examples, draws)


def labels_behind_bottleneck(leak: GradientLeak, *, tolerance: float) -> LabelRecovery:
    """Return each example's label.

    Args:
        leak: with a `Bottleneck` fact.
        tolerance: L∞ error of a label that RECOVERED stays below.

    Raises:
        NotApplicable: as `behind` does, or labels don't show.
    """
    found = behind(leak)
    if isinstance(found.draws, str):
        raise NotApplicable(found.draws)
    bars = BAR * max(found.draws.misfit, 1.0) * found.draws.label_std.max(axis=1)
    labels = torch.from_numpy(found.draws.labels)
    rows = zip(labels, bars.tolist(), strict=True)
    return LabelRecovery.of(
        [_label(label, bar, found, row, tolerance) for row, (label, bar) in enumerate(rows)]
    )


def _label(
    label: torch.Tensor, bar: float, found: Behind, row: int, tolerance: float
) -> ExampleLabel:
    assert isinstance(found.draws, Drawn)
    if not label.isfinite().all():
        return ExampleLabel(Status.NOT_CONVERGED, "the draws aren't finite")
    misfit, status, reason = found.draws.misfit, Status.NOT_CONVERGED, found.doubt(row)
    strays = float(torch.maximum(-label.min(), label.max() - 1))
    if reason is None and not (misfit <= MOST_MISFIT_OF_DRAWS and strays <= max(bar, tolerance)):
        reason = (
            f"the layers behind the draw contradict each other by {misfit:.2g} standard "
            f"deviations of rounding, more than {MOST_MISFIT_OF_DRAWS:g}, or the label is none"
        )
    elif reason is None and not bar <= tolerance:
        status = Status.NOT_IDENTIFIABLE
        reason = f"the label's error is estimated at {bar:.2g}, more than {tolerance:.2g}"
    if reason is None:
        status = Status.RECOVERED
    return ExampleLabel(status, reason, label=label, label_bar=known(bar), residual=known(misfit))


def images_behind_bottleneck(leak: GradientLeak, *, tolerance: float) -> Reconstruction:
    """Return each example's image, in the order of `labels_behind_bottleneck`.

    Args:
        leak: with a `Bottleneck` fact.
        tolerance: root mean square error in pixels that RECOVERED stays below.

    Raises:
        NotApplicable: as `behind` does, or pixels don't follow from the first layer.
    """
    network = Network.of(leak)
    inverse = PixelMap.of(network, network.executed[0])
    found = behind(leak)
    a = torch.from_numpy(found.examples.inputs)
    images = inverse.pixels(a)
    errors = BAR * torch.from_numpy(found.examples.errors) * row_rms(a) * inverse.worth
    slack = torch.maximum(errors, torch.tensor(tolerance))
    images, strays, (low, high) = in_range(images, slack, is_told=leak.normalization is not None)
    rows = []
    for row, (image, error) in enumerate(
        zip(images, (errors / (high - low)).tolist(), strict=True)
    ):
        reason = found.doubt(row) or (STRAYS if strays[row] else None)
        rows.append(_image(image, error, reason, tolerance))
    return Reconstruction.of(rows, pixel_range=(low, high))


def _image(image: torch.Tensor, error: float, reason: str | None, tolerance: float) -> ExampleImage:
    if not image.isfinite().all():
        return ExampleImage(Status.NOT_CONVERGED, "the image isn't finite")
    if reason is None and error <= tolerance:
        return ExampleImage(Status.RECOVERED, None, image, error=error)
    if reason is not None:
        return ExampleImage(Status.NOT_CONVERGED, reason, image)
    reason = f"the image's error is estimated at {error:.2g}, more than {tolerance:.2g}"
    return ExampleImage(Status.NOT_IDENTIFIABLE, reason, image, error=known(error))
