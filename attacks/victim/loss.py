"""Can a last layer's gradient be that of a mean cross-entropy? Sentences for where it can't.

With `G = (1/N) Σ_b (p_b − y_b) x_bᵀ` and `g = (1/N) Σ_b (p_b − y_b)`, p and y on the simplex:

* every column of G sums to 0, as p and y both sum to 1. Those of a binary cross-entropy or a
  squared error don't.
* `Σ_k max(−g_k, 0) ≤ 1`: it is the total variation distance of the mean p and the mean y. A summed
  loss, a learning rate that is larger than told, or momentum that wasn't told, may break this.
* Without a bias, for any unit vector u: `Σ_k max(−(G u)_k, 0) ≤ max_b |u·x_b|`, since each
  example's part is |u·x_b| times such a distance. With u the mean feature's direction both are
  near; how large u·x can be is looked for among all images that the network may be given.

Noise of standard deviation σ on every entry adds to both; σ shows in the columns' sums.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attacks.types import GradientLeak, NotApplicable
from attacks.victim.network import Network

Array = NDArray[np.float64]
OTHER_LOSS = (
    "the rows of the last layer's gradient don't sum to 0, as those of a softmax's cross-entropy "
    "do: another loss is behind it (squared error, binary cross-entropy), or a defense changed "
    "entries one by one"
)
TOO_LARGE = (
    "the last layer's gradient is {ratio:.2g} times as large as the mean cross-entropy of any "
    "labels leaves it{where}: a summed loss, another learning rate than was told, momentum or "
    "another optimizer would do so, and the counts would be wrong"
)
IMBALANCE = 0.05
"""Share of the gradient that the columns' sums keep, from which another loss may be behind."""
ALONG = 8.0
"""How far those sums lie along the mean feature, in standard deviations of their rest."""
UNTOLD_RANGE = 3.0
"""Largest input of a network, both ways, where the leak doesn't tell: usual normalisations'."""
ASCENT_MARGIN = 1.5
"""How much larger features may be than those found by ascent, which may end at a local maximum."""
ASCENTS, ASCENT_STEPS = 4, 10


def mean_direction(gradient: Array) -> Array:
    """Return the unit row (D,) along which a gradient (K, D) is largest, by power iteration."""
    sizes = np.linalg.norm(gradient, axis=1)
    u = gradient[int(sizes.argmax())] / sizes.max()
    for _ in range(3):
        u = gradient.T @ (gradient @ u)
        u /= np.linalg.norm(u)
    return np.asarray(u)


def is_of_another_loss(gradient: Array) -> bool:
    """Say whether the columns' sums of a gradient (K, D) show another loss, rather than noise."""
    sums = gradient.sum(axis=0)
    if np.linalg.norm(sums) <= IMBALANCE * np.linalg.norm(gradient, axis=1).sum():
        return False
    u = mean_direction(gradient)
    along = float(sums @ u)
    rest = float(np.linalg.norm(sums - along * u)) / max(len(sums) - 1, 1) ** 0.5
    return bool(abs(along) > ALONG * rest)


def require_mean_loss(
    leak: GradientLeak, network: Network, gradient: Array, bias_gradient: Array | None
) -> None:
    """Raise unless a gradient may be that of a mean cross-entropy.

    Args:
        leak: what is attacked.
        network: a view of its model.
        gradient: G, (K, D), of one step or the mean of several.
        bias_gradient: g, (K,); None without a bias.

    Raises:
        NotApplicable: it can't; the sentence says what may be behind.
    """
    if is_of_another_loss(gradient):
        raise NotApplicable(OTHER_LOSS)
    sigma = float(gradient.sum(axis=0).std()) / len(gradient) ** 0.5
    noise = (0.4 * len(gradient) + 4 * len(gradient) ** 0.5) * sigma
    if bias_gradient is not None:
        size = float(np.maximum(-bias_gradient, 0).sum())
        if size > 1 + noise:
            raise NotApplicable(TOO_LARGE.format(ratio=size, where=""))
        return
    if leak.mode == "train" or network.head_name not in network.flat:
        return  # features depend on the batch, or are several to an image
    u = mean_direction(gradient)
    size = float(np.maximum(-(gradient @ u), 0).sum()) - noise
    enough = size / ASCENT_MARGIN
    low = 0.0 if leak.normalization else -UNTOLD_RANGE
    high = 1.0 if leak.normalization else UNTOLD_RANGE
    largest = largest_projection(network, torch.from_numpy(u), low, high, enough=enough)
    if largest < enough:
        where = f" for pixels in [{low:g}, {high:g}]"
        raise NotApplicable(TOO_LARGE.format(ratio=size / max(largest, 1e-300), where=where))


def largest_projection(
    network: Network, u: Tensor, low: float, high: float, *, enough: float
) -> float:
    """Look for the largest |u·x| of the last layer's input x, over images in a range.

    By conditional gradients (M. Frank, P. Wolfe, 1956): where u·x is convex in the image, as with
    one hidden ReLU layer, every step goes up, from one corner of the range to another.

    Args:
        network: a view of the model.
        u: (D,).
        low: of pixels.
        high: likewise.
        enough: the search may end at a value as large.
    """
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(2 * ASCENTS, *network.input_shape, generator=draws)
    images = low + (high - low) * images
    signs = torch.tensor([1.0, -1.0]).repeat(ASCENTS).to(network.dtype)
    best = 0.0
    for _ in range(ASCENT_STEPS):
        images = images.to(network.dtype).requires_grad_()
        with torch.enable_grad():
            head = network.head_name
            features = network.inputs_of([head], images, with_grad=True)[head]
            projected = features @ u.to(network.dtype) * signs
        best = max(best, float(projected.detach().abs().max()))
        if best >= enough or not projected.requires_grad:  # a model may run without gradients
            break
        (slope,) = torch.autograd.grad(projected.sum(), images)
        corners = torch.where(slope > 0, high, low).to(network.dtype)
        if corners.equal(images):
            break
        images = corners
    return best
