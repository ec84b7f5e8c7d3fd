"""What a client does to protect itself. Importing this package imports no PyTorch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from attacks.registry import Entry, Registry

if TYPE_CHECKING:
    from defenses.base import Chain, ClientStep, Defense, Place, WithState

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
    group="fl_sim.defenses",
)

__all__ = ["DEFENSES", "Chain", "ClientStep", "Defense", "Place", "WithState"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("defenses.base"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
