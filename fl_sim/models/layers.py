"""What the networks are made of: their first layer, and the initial weights of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]
Init = Literal["default", "he", "dlg", "torchvision"]
"""How weights are drawn. Every network knows "default", what people train (the library's own), and
"he"; "dlg" and "torchvision" are of the networks that say so."""
Weighted = TypeVar("Weighted", bound=nn.Linear | nn.Conv2d)


class Normalize(nn.Module):
    """Map pixels x to (x - mean) / std, channel by channel.

    The buffers aren't part of the state: they belong to the data set and are never sent.

    Args:
        mean: of each channel.
        std: of each channel, above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(
                f"mean and std must be equally long and std above 0, found {mean} and {std}"
            )
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        return (images - self.mean) / self.std


def require_init(init: str, *own: str) -> None:
    """Check a network's initialisation.

    Args:
        init: as asked for.
        own: what the network knows beside "default" and "he".

    Raises:
        ValueError: it knows no such one.
    """
    *others, last = known = ("default", "he", *own)
    if init not in known:
        listed = f"{', '.join(map(repr, others))} or {last!r}"
        raise ValueError(f"init must be {listed}, found {init!r}")


def initialised(layer: Weighted, init: Init) -> Weighted:
    """Return a new layer, which holds PyTorch's weights, with those of `init`.

    With m inputs to an output, PyTorch draws weights and biases uniformly in ±1/√m. He's weights
    are normal with variance 2/m, and biases 0: K. He et al., "Delving deep into rectifiers", ICCV
    2015, arXiv 1502.01852, equation 10. Any other `init` leaves the layer as it is.
    """
    if init == "he":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layer
