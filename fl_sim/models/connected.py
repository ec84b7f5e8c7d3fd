"""Fully connected networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from fl_sim.models.layers import Init, Normalize, Shape, initialised, require_init


def fcn4(
    *,
    num_classes: int,
    input_shape: Shape,
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    init: Init = "default",
) -> nn.Module:
    """Return four linear layers with ReLU between them.

    With n = C·H·W inputs, the hidden widths are 256, 128, 64 up to n = 784, and n/3, n/12, n/48
    beyond: 4096, 1024, 256 for 64×64 colour images.

    Args:
        num_classes: K.
        input_shape: (C, H, W).
        bias: whether the layers have biases (all of them).
        mean: of each channel.
        std: of each channel.
        init: "default", PyTorch's, or "he".

    Raises:
        ValueError: it is another `init`.
    """
    n = math.prod(input_shape)
    hidden = (256, 128, 64) if n <= 784 else (n // 3, n // 12, n // 48)
    return _fully_connected((n, *hidden, num_classes), bias, init, Normalize(mean, std))


def mlp(
    *,
    num_classes: int,
    input_shape: Shape,
    bias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    init: Init = "default",
) -> nn.Module:
    """Return linear layers n-512-512-K with ReLU between them; see `fcn4`."""
    n = math.prod(input_shape)
    return _fully_connected((n, 512, 512, num_classes), bias, init, Normalize(mean, std))


def _fully_connected(
    widths: Sequence[int], bias: bool, init: Init, normalize: Normalize
) -> nn.Module:
    require_init(init)
    layers: list[nn.Module] = [normalize, nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [initialised(nn.Linear(inputs, outputs, bias=bias), init), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
