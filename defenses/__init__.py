"""What a client does to protect itself. Importing this package imports no PyTorch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from attacks.registry import Entry, Registry

if TYPE_CHECKING:
    from defenses.base import Chain, ClientStep, Defense

DEFENSES = Registry(
    "defense",
    {
        "label-smoothing": Entry(
            "defenses.label_smoothing:LabelSmoothing", "mixes each label with the uniform one"
        ),
        "mixup": Entry("defenses.mixup:Mixup", "trains on convex combinations of two examples"),
        "dp-noise": Entry(
            "defenses.dp_noise:DPNoise", "clips the update and adds Gaussian noise to it"
        ),
    },
)

_TYPES = ("Chain", "ClientStep", "Defense")
__all__ = ["DEFENSES", *_TYPES]


def __getattr__(name: str) -> Any:
    if name in _TYPES:
        return getattr(importlib.import_module("defenses.base"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
