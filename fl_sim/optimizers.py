"""The optimizers that clients train with, and what each leaves of a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:  # scenarios are validated before PyTorch loads
    import torch

Name = Literal["sgd", "adam", "adamw", "rmsprop", "adagrad"]
NAMES: tuple[str, ...] = get_args(Name)
TITLES = {
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "rmsprop": "RMSprop",
    "adagrad": "Adagrad",
}
FIRST_STEP = {"adam": 1.0, "adamw": 1.0, "rmsprop": 10.0, "adagrad": 1.0}
"""Length of the first step in learning rates, alike for all entries whose gradient isn't tiny.

With D. Kingma, J. Ba, "Adam", ICLR 2015, algorithm 1, it is m̂ / √v̂ = g / |g|. RMSprop's average
starts at 0 and isn't corrected: g / √(0.01 g²) with PyTorch's α = 0.99. Adagrad's sum is g².
"""


def build_optimizer(
    name: str,
    parameters: Iterable[torch.Tensor],
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Return PyTorch's optimizer of a name, with PyTorch's defaults for what isn't given.

    Args:
        name: one of `NAMES`.
        parameters: to optimise.
        lr: learning rate.
        momentum: of SGD.
        nesterov: of SGD.
        weight_decay: decoupled from the gradient in AdamW, added to it in the others.
    """
    import torch

    if name == "sgd":
        return torch.optim.SGD(
            parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )
    kinds: dict[str, type[torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "rmsprop": torch.optim.RMSprop,
        "adagrad": torch.optim.Adagrad,
    }
    # The base class's signature isn't theirs.
    kind: Callable[..., torch.optim.Optimizer] = kinds[name]
    return kind(parameters, lr=lr, weight_decay=weight_decay)
