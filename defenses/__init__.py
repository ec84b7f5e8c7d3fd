"""What a client does to protect itself. Importing this package imports no PyTorch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from attacks.registry import Entry, Registry

if TYPE_CHECKING:
    from defenses.base import Chain, ClientStep, Defense, Place, WithState
    from defenses.privacy import LocalPlan, Privacy, Unit

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

_NAMES = {
    "Chain": "defenses.base",
    "ClientStep": "defenses.base",
    "Defense": "defenses.base",
    "LocalPlan": "defenses.privacy",
    "Place": "defenses.base",
    "Privacy": "defenses.privacy",
    "Unit": "defenses.privacy",
    "WithState": "defenses.base",
}
__all__ = [
    "DEFENSES",
    "Chain",
    "ClientStep",
    "Defense",
    "LocalPlan",
    "Place",
    "Privacy",
    "Unit",
    "WithState",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
