"""The answer of a search: the best start's images, and how far the others agree."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.answers import ExampleImage, Reconstruction, Status
from attacks.matching.unknowns import Unknowns


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
    images = torch.stack([unknowns.images(row) for row in rows if row.isfinite().all()])
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


def _spread(images: Tensor) -> Tensor | None:
    """Return the standard deviation (N, C, H, W) of images (R, N, C, H, W) over starts.

    A batch has no order: each start's images are paired with the first start's. M. Vero et al.,
    *TabLeak*, ICML 2023, arXiv 2210.01785, section 4.3, for the entries of a table.
    """
    if len(images) < 2:
        return None
    first = images[0].flatten(1)
    paired = [images[0]]
    for other in images[1:]:
        _, columns = linear_sum_assignment(torch.cdist(first, other.flatten(1)).numpy())
        paired.append(other[torch.from_numpy(columns)])
    return torch.stack(paired).std(dim=0)
