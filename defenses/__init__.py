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
        "cutmix": Entry("defenses.cutmix:CutMix", "pastes a rectangle of another image into each"),
        "vicinal": Entry("defenses.vicinal:Vicinal", "trains on two mixes of each pair"),
        "dropout": Entry("defenses.dropout:Dropout", "drops outputs of activations while training"),
        "precode": Entry(
            "defenses.precode:Precode", "puts a variational bottleneck before the last layer"
        ),
        "gradient-clipping": Entry(
            "defenses.gradient_clipping:GradientClipping", "bounds the norm of each step's gradient"
        ),
        "learning-rate-noise": Entry(
            "defenses.learning_rate_noise:LearningRateNoise",
            "multiplies each step's gradient by a factor",
        ),
        "dp-sgd": Entry(
            "defenses.dp_sgd:DPSGD", "clips each example's gradient and adds noise to the sum"
        ),
        "soteria": Entry(
            "defenses.soteria:Soteria", "prunes the columns of a layer that tell most"
        ),
        "outpost": Entry(
            "defenses.outpost:Outpost", "prunes and adds noise by layer, in some rounds"
        ),
        "pruning": Entry("defenses.pruning:Pruning", "sends a share of the update's entries"),
        "quantization": Entry(
            "defenses.quantization:Quantization", "rounds the update's entries to a few levels"
        ),
        "sign": Entry("defenses.sign:Sign", "sends the signs of the update's entries"),
        "dp-noise": Entry("defenses.dp_noise:DPNoise", "clips the update and adds noise to it"),
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
