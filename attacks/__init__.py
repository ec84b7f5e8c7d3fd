"""Gradient inversion attacks: from what a server sees of a client to its private data.

Everything here works on a plain PyTorch gradient. Importing this package imports no PyTorch:
names load when they are first read.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from attacks.registry import Entry, Registry

if TYPE_CHECKING:
    from attacks.answers import (
        Augmentation,
        Certainty,
        ExampleImage,
        ExampleLabel,
        LabelRecovery,
        Reconstruction,
        Status,
    )
    from attacks.normalization import Normalization
    from attacks.types import GradientLeak, ImageAttack, LabelAttack, NotApplicable

LABEL_ATTACKS = Registry(
    "label attack",
    {
        "soft-label": Entry(
            "attacks.labels.soft_label:SoftLabelRecovery",
            "exact soft labels and features of one example or a batch, augmentation detected",
        ),
        "soft-label-pso": Entry(
            "attacks.labels.soft_label_pso:SoftLabelPSO",
            "soft label of one example by L-BFGS and particle swarms, as published; a baseline",
        ),
        "bias-ratio": Entry(
            "attacks.labels.bias_ratio:BiasRatio",
            "soft label of one example from the ratio of weight and bias gradients",
        ),
        "idlg": Entry(
            "attacks.labels.idlg:IDLG", "class of one example by the sign rule (hard labels)"
        ),
        "gradinversion-labels": Entry(
            "attacks.labels.gradinversion_labels:GradInversionLabels",
            "classes of a batch that repeats none, by the lowest entries of their gradients",
        ),
        "llg": Entry(
            "attacks.labels.llg:LLG", "class counts from the gradient's row sums (LLG, LLG*, LLG+)"
        ),
        "ilrg": Entry(
            "attacks.labels.ilrg:ILRG", "class counts from class-wise mean features; needs a bias"
        ),
        "label-mass": Entry(
            "attacks.labels.label_mass:LabelMass",
            "real-valued class mass of a batch or of a multi-step update",
        ),
    },
    group="fl_sim.label_attacks",
)
IMAGE_ATTACKS = Registry(
    "image attack",
    {
        "analytic": Entry(
            "attacks.images.analytic:AnalyticInversion",
            "exact images from a fully connected network, one example or a batch",
        ),
        "r-gap": Entry(
            "attacks.images.r_gap:RGAP",
            "exact image from convolutions with invertible activations, layer by layer",
        ),
        "relu-fit": Entry(
            "attacks.images.relu_fit:ReLUFit",
            "exact image from convolutions with ReLU or leaky ReLU, one example, by a short fit",
        ),
        "dlg": Entry(
            "attacks.images.dlg:DLG", "images by matching the gradient in squares, with L-BFGS"
        ),
        "inverting-gradients": Entry(
            "attacks.images.inverting_gradients:InvertingGradients",
            "images by cosine distance and total variation, with signed Adam",
        ),
        "gradinversion": Entry(
            "attacks.images.gradinversion:GradInversion",
            "images by layers' distances, batch norm's statistics and starts that agree",
        ),
        "feature-matching": Entry(
            "attacks.images.feature_matching:FeatureMatching",
            "inverting-gradients with the recovered feature and soft label as further terms",
        ),
        "auto": Entry(
            "attacks.images.auto:Auto",
            "the strongest image attack that applies to a leak, by a fixed order",
        ),
    },
    group="fl_sim.image_attacks",
)

__all__ = [
    "IMAGE_ATTACKS",
    "LABEL_ATTACKS",
    "Augmentation",
    "Certainty",
    "Entry",
    "ExampleImage",
    "ExampleLabel",
    "GradientLeak",
    "ImageAttack",
    "LabelAttack",
    "LabelRecovery",
    "Normalization",
    "NotApplicable",
    "Reconstruction",
    "Registry",
    "Status",
]

_HOMES = {
    "Augmentation": "answers",
    "Certainty": "answers",
    "ExampleImage": "answers",
    "ExampleLabel": "answers",
    "GradientLeak": "types",
    "ImageAttack": "types",
    "LabelAttack": "types",
    "LabelRecovery": "answers",
    "Normalization": "normalization",
    "NotApplicable": "types",
    "Reconstruction": "answers",
    "Status": "answers",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"attacks.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
