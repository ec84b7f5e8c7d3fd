"""Gradient inversion attacks: from what a server sees of a client to its private data.

Everything here works on a plain PyTorch gradient. Importing this package imports no PyTorch:
names load when they are first read.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from attacks.registry import Entry, Registry

if TYPE_CHECKING:
    from attacks.types import (
        GradientLeak,
        ImageAttack,
        Knowledge,
        LabelAttack,
        LabelRecovery,
        Reconstruction,
        Status,
    )

LABEL_ATTACKS = Registry(
    "label attack",
    {
        "soft-label": Entry(
            "attacks.soft_label:SoftLabelRecovery",
            "exact soft label and feature of one example, augmentation detected",
        ),
        "bias-ratio": Entry(
            "attacks.bias_ratio:BiasRatio",
            "soft label of one example from the ratio of weight and bias gradients",
        ),
        "idlg": Entry("attacks.idlg:IDLG", "class of one example by the sign rule (hard labels)"),
    },
    group="fl_sim.label_attacks",
)
IMAGE_ATTACKS = Registry(
    "image attack",
    {
        "analytic": Entry(
            "attacks.analytic:AnalyticInversion",
            "exact image from a fully connected network, one example",
        ),
        "r-gap": Entry(
            "attacks.r_gap:RGAP",
            "exact image from a chain of convolutions and linear layers, one example",
        ),
    },
    group="fl_sim.image_attacks",
)

__all__ = [
    "IMAGE_ATTACKS",
    "LABEL_ATTACKS",
    "Entry",
    "GradientLeak",
    "ImageAttack",
    "Knowledge",
    "LabelAttack",
    "LabelRecovery",
    "Reconstruction",
    "Registry",
    "Status",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("attacks.types"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
