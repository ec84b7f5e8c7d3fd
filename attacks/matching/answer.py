"""The answer of a search: the best start's images, what they deserve, how far others agree."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.answers import ExampleImage, Reconstruction, Status
from attacks.matching.determined import Evidence
from attacks.matching.restarts import Starts
from attacks.matching.unknowns import Unknowns

TOLERANCE_RMS = 10 ** (-50 / 20)
"""Root mean square error that RECOVERED stays below: a PSNR of 50 dB."""


def verdict_on(
    evidence: Evidence, found: Starts, least: float
) -> tuple[Status, str | None, float | None]:
    """Return status, reason and the images' error.

    Args:
        evidence: what the gradient says of the best start.
        found: all starts.
        least: root mean square error that is there anyhow: between epochs' images of an example.
    """
    count, best = len(found.losses), float(found.losses.min())
    starts = "1 start" if count == 1 else f"the best of {count} starts"
    if found.redrawn:
        starts += f", {found.redrawn} of them drawn anew as their loss wasn't finite"
    sentence = (
        f"the images leave a gradient that is {evidence.misfit:.2g} of its size off "
        f"(objective {best:.3g}, {starts}, {found.evaluations} gradient evaluations, ended by "
        f"{found.ended.removeprefix('as ')})"
    )
    if evidence.reason is not None:
        return Status.NOT_CONVERGED, f"{sentence}, {evidence.reason}", None
    assert evidence.error is not None
    error = max(evidence.error, least)
    if error > TOLERANCE_RMS:
        end = f"from which they follow to {error:.2g} alone"
        return Status.NOT_CONVERGED, f"{sentence}, {end}", error
    return Status.RECOVERED, None, error


def write_answer(
    unknowns: Unknowns,
    rows: Tensor | None,
    status: Status,
    reason: str | None,
    evaluations: int,
    misfit: float | None = None,
    error: float | None = None,
) -> Reconstruction:
    """Return the answer of rows (R, size), the best first, with how far the starts agree."""
    if rows is None:
        examples = [ExampleImage(status, reason)] * unknowns.examples
        return Reconstruction.of(examples, gradient_evaluations=evaluations)
    images = torch.stack([_merged(unknowns, row) for row in rows if row.isfinite().all()])
    spreads = _spread(images)
    examples = [
        ExampleImage(
            status,
            reason,
            image.clone(),
            misfit,
            error,
            None if spreads is None else spreads[index],
        )
        for index, image in enumerate(images[0])
    ]
    return Reconstruction.of(examples, gradient_evaluations=evaluations)


def spread_of_copies(unknowns: Unknowns, row: Tensor) -> float:
    """Return the root mean square distance of an example's copies from their mean; 0 of one."""
    return float((_paired(unknowns, row) - _merged(unknowns, row)).square().mean().sqrt())


def _merged(unknowns: Unknowns, row: Tensor) -> Tensor:
    """Return the images (N, C, H, W) of a row: the mean of each example's copies.

    D. Dimitrov et al., TMLR 2022, arXiv 2206.12395, section 4.2.
    """
    return _paired(unknowns, row).mean(dim=0)


def _paired(unknowns: Unknowns, row: Tensor) -> Tensor:
    """Return the epochs' images (E, N, C, H, W), each epoch in the first one's order."""
    images = unknowns.images(row)
    first, *others = images.reshape(unknowns.epochs, unknowns.examples, *images.shape[1:])
    return torch.stack([first, *(_in_order_of(first, other) for other in others)])


def _in_order_of(first: Tensor, other: Tensor) -> Tensor:
    """Return images (N, C, H, W) in the order in which they are nearest to others."""
    distances = torch.cdist(first.flatten(1), other.flatten(1))
    _, columns = linear_sum_assignment(distances.numpy())
    return other[torch.from_numpy(columns)]


def _spread(images: Tensor) -> Tensor | None:
    """Return the standard deviation (N, C, H, W) of images (R, N, C, H, W) over starts.

    A batch has no order: each start's images are paired with the first start's. M. Vero et al.,
    *TabLeak*, ICML 2023, arXiv 2210.01785, section 4.3, for the entries of a table.
    """
    if len(images) < 2:
        return None
    return torch.stack([_in_order_of(images[0], other) for other in images]).std(dim=0)
