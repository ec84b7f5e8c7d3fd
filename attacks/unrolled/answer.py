"""What is answered of examples whose training was repeated."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.answers import (
    Augmentation,
    ExampleImage,
    ExampleLabel,
    LabelRecovery,
    Reconstruction,
    Status,
)
from attacks.numerics.rms import row_rms
from attacks.types import GradientLeak
from attacks.unrolled.found import Replay
from attacks.unrolled.replay import replay
from attacks.victim.network import Network
from attacks.victim.pixel_map import STRAYS, PixelMap, range_of


def labels_of_steps(found: Replay, tolerance: float) -> LabelRecovery:
    """Return a label for each distinct example.

    Args:
        found: the examples.
        tolerance: L∞ error of a label that RECOVERED stays below.
    """
    rows = zip(found.labels, found.features, found.label_bars.tolist(), found.reasons, strict=True)
    return LabelRecovery.of([_label(*row, found.typical, tolerance) for row in rows])


def _label(
    label: Tensor,
    feature: Tensor,
    bar: float,
    reason: str | None,
    typical: float,
    tolerance: float,
) -> ExampleLabel:
    if not label.isfinite().all():
        return ExampleLabel(Status.NOT_CONVERGED, reason)
    status = Status.NOT_CONVERGED
    if reason is None and not bar <= tolerance:
        status = Status.NOT_IDENTIFIABLE
        reason = f"the label's error is estimated at {bar:.2g}, more than {tolerance:.2g}"
    elif reason is None:
        status = Status.RECOVERED
    is_told = status is Status.RECOVERED
    return ExampleLabel(
        status,
        reason,
        label=label,
        feature=feature if feature.isfinite().all() else None,
        augmentation=_augmentation(label, bar) if is_told else None,
        label_bar=bar if is_told else None,
        residual=typical,
    )


def _augmentation(label: Tensor, bar: float) -> Augmentation | None:
    """Return what was done to a label; None where it isn't equal in all but two entries."""
    ordered = label.sort(descending=True).values
    tied = ordered[2:]
    if len(tied) < 1 or float(tied.max() - tied.min()) > 2 * bar:
        return None
    tie = float(tied.mean())
    smoothing = min(max(len(label) * tie, 0.0), 1.0) if tie > bar else 0.0
    mixed = float(ordered[1]) - tie
    if mixed <= 2 * bar:
        return Augmentation("label-smoothing" if smoothing else "hard", smoothing)
    kind = "mixup+label-smoothing" if smoothing else "mixup"
    return Augmentation(kind, smoothing, 1 - mixed / max(1 - smoothing, 1e-12))


def images_of_steps(
    leak: GradientLeak, network: Network, labels: LabelRecovery, *, tolerance: float
) -> Reconstruction:
    """Return an image for each distinct example, in the label recovery's order.

    Args:
        leak: of several steps.
        network: a view of its model.
        labels: of any attack; only their order counts.
        tolerance: root mean square error that RECOVERED stays below.

    Raises:
        NotApplicable: the steps can't be repeated, or pixels don't follow from the first layer.
    """
    found = replay(leak, network)
    inverse = PixelMap.of(network, network.trace[0].name)
    images = inverse.pixels(found.inputs)
    errors = found.input_bars * inverse.worth
    overshoot = row_rms(images - images.clamp(0, 1))
    low, high = 0.0, 1.0
    claimed = torch.tensor([reason is None for reason in found.reasons])
    if leak.normalization is None and (overshoot[claimed] > tolerance).any():
        low, high = range_of(images[claimed])
        overshoot = torch.zeros_like(overshoot)
    errors = torch.maximum(errors / (high - low), overshoot)
    rows = [
        _image(image.clamp(low, high), reason, error, stray, tolerance)
        for image, reason, error, stray in zip(
            images, found.reasons, errors.tolist(), overshoot.tolist(), strict=True
        )
    ]
    order = order_of(labels, found.features, found.labels)
    return Reconstruction.of([rows[i] for i in order], pixel_range=(low, high))


def _image(
    image: Tensor, reason: str | None, error: float, stray: float, tolerance: float
) -> ExampleImage:
    if reason is not None:
        return ExampleImage(Status.NOT_CONVERGED, reason)
    if stray > tolerance:
        return ExampleImage(Status.NOT_CONVERGED, STRAYS, image, error=error)
    if not error <= tolerance:
        reason = f"the image's error is estimated at {error:.2g}, more than {tolerance:.2g}"
        return ExampleImage(Status.NOT_IDENTIFIABLE, reason, image, error=error)
    return ExampleImage(Status.RECOVERED, None, image, error=error)


def order_of(given: LabelRecovery, features: Tensor, labels: Tensor) -> list[int]:
    """Return which example is which of a label recovery's: by features, or else by labels.

    Args:
        given: the label recovery.
        features: (n, D), of the examples.
        labels: (n, K), likewise.
    """
    for other, own in ((given.features, features), (given.labels, labels)):
        if other is not None and other.shape == own.shape and own.isfinite().all():
            apart = (other.nan_to_num(0.0)[:, None].double() - own).norm(dim=2)
            return [int(i) for i in linear_sum_assignment(apart.numpy())[1]]
    return list(range(len(labels)))
