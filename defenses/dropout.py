"""Dropout behind every activation, while clients train.

Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, *Dropout: A Simple Way to Prevent
Neural Networks from Overfitting*, JMLR 15, 2014; as a defense: Scheliga, Mäder and Seeland,
*Dropout is NOT All You Need to Prevent Gradient Leakage*, AAAI 2023, arXiv 2208.06163, who break
it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from attacks.facts import DroppedUnits, Fact
from defenses.base import Defense
from defenses.parameters import require_number
from defenses.privacy import LocalPlan

ACTIVATIONS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Tanh,
)


def with_dropout(model: nn.Module, p: float) -> nn.Module:
    """Return a copy of a network with dropout behind each of its activation modules.

    Args:
        model: left as it is.
        p: the probability in [0, 1) with which an output becomes 0 in train mode; others are
            divided by 1 − p.

    Raises:
        ValueError: the network has no activation that is a module.
    """
    changed = copy.deepcopy(model)
    found = [
        (parent, name)
        for parent in changed.modules()
        for name, child in parent.named_children()
        if isinstance(child, ACTIVATIONS)
    ]
    if not found:
        raise ValueError(
            "dropout needs activations that are modules (nn.ReLU, …) to stand behind, found none "
            f"in {type(model).__name__}"
        )
    for parent, name in found:
        activation = parent.get_submodule(name)
        setattr(parent, name, nn.Sequential(activation, nn.Dropout(p)))
    return changed


@dataclass(frozen=True)
class Dropout(Defense):
    """Drop outputs of every activation while clients train.

    Args:
        p: the probability in [0, 1) with which one becomes 0; 0 changes nothing.

    Raises:
        ValueError: p is outside, the network has no activation modules, or clients train in eval
            mode.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        require_number("p", self.p, "in [0, 1)", lambda p: 0 <= p < 1)

    @property
    def is_random(self) -> bool:
        """Whether anything is dropped."""
        return self.p > 0

    def check(self, model: nn.Module, plan: LocalPlan) -> None:
        """Refuse eval mode, in which nothing is dropped."""
        if plan.mode != "train":
            raise ValueError(
                f'dropout acts in train mode alone: set client.mode = "train", found {plan.mode!r}'
            )

    def on_model(self, model: nn.Module, generator: torch.Generator) -> nn.Module:
        """Put dropout behind every activation."""
        return with_dropout(model, self.p)

    def facts(self) -> tuple[Fact, ...]:
        """Tell the probability."""
        return (DroppedUnits(self.p),)
