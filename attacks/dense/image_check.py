"""A test of images found in a network's first layer, without any truth.

For every linear layer above, `∂L/∂W = (1/B) Σ_b δ_b a_bᵀ`: the layer's input on each of the B
images lies in the row space of its gradient. So an image goes forward through the network, and its
residual is the largest relative distance of those inputs from those spaces. Rank alone wouldn't do:
Adam, sign compression or clipping by value, any map of the gradient's entries one by one, may keep
the rank, and leave another image in the first layer; but its way through the network doesn't end
in the last layer's gradient.

Where the label was RECOVERED, the last layer's input is known with its scale, and has to be met.
Where it wasn't, directions alone are compared: they say nothing of an image's scale if the network
is homogeneous, nor tell two images from their mixtures if it is linear. What the test can tell is
found out on images that are wrong (moved at random, scaled, mixed with another of the batch): the
error that the residual leaves open is the largest that a wrong image has for the same residual.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attacks.answers import Status
from attacks.dense.chain import column_space
from attacks.dense.dropout import Dropped
from attacks.types import GradientLeak
from attacks.victim.gradients import has_layer_gradient
from attacks.victim.network import Network, parameter_name
from attacks.victim.pixel_map import PixelMap

MOVED = 0.1
"""By how much, relative to itself, an image is made wrong."""
TELLS = 3.0
"""The residual of a wrong image must exceed that of the one found by this factor."""
LEAST_EQUATIONS = 3
"""Equations that an image must satisfy beyond those that place it in the row spaces."""
UNTESTED = "nothing above the first layer tests the image, and its label isn't RECOVERED"
UNTOLD = (
    "at a relative misfit of {:.1g} to the layers' gradients, the network doesn't tell the image "
    "from a wrong one, moved, scaled or mixed with another"
)


@dataclass(frozen=True, eq=False)
class ImageTest:
    """The verdict on each image.

    Args:
        residual: (B,), relative; NaN where nothing tests the image.
        error: (B,), root mean square error of the first layer's input that the residual leaves
            open, relative to that input; infinite where nothing tells.
        reasons: why nothing tells, None where something does.
    """

    residual: Tensor
    error: Tensor
    reasons: tuple[str | None, ...]


def check_images(
    leak: GradientLeak,
    network: Network,
    inverse: PixelMap,
    a: Tensor,
    features: Tensor,
    statuses: Sequence[Status],
    dropped: Dropped | None = None,
) -> ImageTest:
    """Send images forward, and wrong ones beside them.

    Args:
        leak: whose gradients the images have to agree with.
        network: a view of its model.
        inverse: from the first layer's inputs to pixels.
        a: (B, n), the first layer's inputs, NaN where there is none.
        features: (B, D), the last layer's inputs, NaN where they aren't known.
        statuses: of the labels.
        dropped: the way forward, where the client's dropout left units out.
    """
    known = torch.tensor([s is Status.RECOVERED for s in statuses]) & features.isfinite().all(dim=1)
    judge = _Judge.of(leak, network, features, known)

    def inputs_of(a: Tensor) -> dict[str, Tensor]:
        return judge.inputs(inverse.pixels(a)) if dropped is None else dropped.inputs_of(a)

    given = inputs_of(a)
    found = judge.residual(given)
    least = found.clamp(min=torch.finfo(network.dtype).eps)
    error = torch.where(judge.equations(given) < LEAST_EQUATIONS, torch.inf, found * 0)
    for wrong, applies in _wrong_inputs(a, known):
        off = (wrong - a).norm(dim=1) / a.norm(dim=1)
        residual = judge.residual(inputs_of(wrong))
        bound = torch.where(residual > TELLS * least, off * least / residual, torch.inf)
        error = torch.where(applies & (off > 0), torch.maximum(error, bound), error)
    error = torch.where(error.isnan(), torch.inf, error)
    reasons = [
        None if bar < torch.inf else UNTESTED if math.isnan(misfit) else UNTOLD.format(misfit)
        for bar, misfit in zip(error.tolist(), found.tolist(), strict=True)
    ]
    return ImageTest(found, error, tuple(reasons))


def _wrong_inputs(a: Tensor, known: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs (B, n) that are wrong, and for which images they are to be told from a.

    A label that is known tells an example from mixtures, and whether the batch's scale is right.
    """
    everything = torch.ones(len(a), dtype=torch.bool)
    draws = torch.Generator().manual_seed(0)
    size = MOVED * a.square().mean(dim=1, keepdim=True).sqrt()
    for _ in range(2):
        noise = torch.randn(a.shape, generator=draws, dtype=torch.float64)
        yield a + size * noise, everything
    if not known.any():
        yield (1 + MOVED) * a, everything
    if not known.all() and len(a) > 1:
        yield a + MOVED * (a.roll(1, dims=0) - a), ~known
        yield a + MOVED * (a[_nearest(a)] - a), ~known


def _nearest(a: Tensor) -> Tensor:
    """Return the index of the row most nearly parallel to each, (B,): its mixtures tell least."""
    unit = a.nan_to_num(0.0)
    unit = unit / unit.norm(dim=1, keepdim=True).clamp(min=1e-300)
    cosines: Tensor = (unit @ unit.T).abs().fill_diagonal_(-1.0)
    return cosines.argmax(dim=1)


@dataclass(frozen=True, eq=False)
class _Judge:
    """What the layers' inputs on an image have to agree with.

    Args:
        network: a view of the model.
        spaces: layer -> an orthonormal basis (n, B) of its gradient's row space.
        features: (B, D), the last layer's inputs.
        known: (B,), for which images these are to be met.
    """

    network: Network
    spaces: dict[str, Tensor]
    features: Tensor
    known: Tensor

    @classmethod
    def of(cls, leak: GradientLeak, network: Network, features: Tensor, known: Tensor) -> _Judge:
        """Take the row spaces of the layers above the first one, where B rows can span them.

        The last layer's K rows sum to 0, and span a space of K − 1 dimensions at most.
        """
        draws, batch = torch.Generator().manual_seed(0), len(features)
        spaces = {}
        for name in network.executed[1:]:
            if not has_layer_gradient(leak, network, name):
                continue
            gradient = leak.gradients[parameter_name(name, "weight")]
            outputs, inputs = gradient.shape
            if inputs <= batch or outputs - (name == network.head_name) < batch:
                continue
            rows = gradient.double().numpy().T
            if np.isfinite(rows).all() and rows.any():
                spaces[name] = torch.from_numpy(column_space(rows, batch, draws))
        return cls(network, spaces, features, known)

    def inputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return each tested layer's inputs (B, n) on images (B, C, H, W)."""
        names = [*{**self.spaces, self.network.head_name: None}]
        found = self.network.inputs_of(names, images)
        return {name: rows.double() for name, rows in found.items()}

    def residual(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the largest relative misfit of each image, (B,); NaN where nothing is tested."""
        parts = []
        for name, basis in self.spaces.items():
            rows = inputs[name]
            parts.append((rows - rows @ basis @ basis.T).norm(dim=1) / rows.norm(dim=1))
        off = (inputs[self.network.head_name] - self.features).norm(dim=1)
        parts.append(torch.where(self.known, off / self.features.norm(dim=1), -torch.inf))
        largest = torch.stack(parts).amax(dim=0)
        return torch.where(largest < 0, torch.nan, largest)

    def equations(self, inputs: dict[str, Tensor]) -> Tensor:
        """Count the entries that are to be met, of units that are live, (B,)."""
        rank = len(self.known)
        counts = [(inputs[name] != 0).sum(dim=1) - rank for name in self.spaces]
        head = (inputs[self.network.head_name] != 0).sum(dim=1)
        counts.append(torch.where(self.known, head, 0))
        return torch.stack(counts).clamp(min=0).sum(dim=0)
