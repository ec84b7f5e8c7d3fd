"""Soteria: the gradient of one layer loses the inputs that tell most of the image.

Sun, Li, Wang, Yang, Li and Chen, *Soteria: Provable Defense against Privacy Leakage in Federated
Learning from Representation Perspective*, CVPR 2021, arXiv 2012.06043, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.facts import Fact, LostColumns
from defenses.base import ClientStep, Defense, Gradients
from defenses.parameters import require_number
from defenses.privacy import LocalPlan


def telling_ratio(model: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    """Return `|r_i| / ‖∂r_i/∂x‖` of a layer's inputs r, averaged over a batch.

    Args:
        model: the network.
        layer: a linear layer in it.
        images: x, (B, C, H, W).

    Returns:
        (D,); 0 for an input that doesn't depend on the image.

    Raises:
        ValueError: the layer doesn't take one row (D,) for each image.
    """
    found: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    try:
        x = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            model(x)
    finally:
        hook.remove()
    if not (len(found) == 1 and found[0].shape[:-1] == images.shape[:1]):
        shapes = ", ".join(str(tuple(given.shape)) for given in found) or "none"
        raise ValueError(f"soteria needs a layer of one row for each image, found {shapes}")
    (r,) = found
    ratio = torch.zeros(r.shape, device=r.device, dtype=r.dtype)
    for i in range(r.shape[1]):  # the rows of a batch don't depend on each other's images
        (slope,) = torch.autograd.grad(r[:, i].sum(), x, retain_graph=True)
        size = slope.flatten(1).norm(dim=1)
        ratio[:, i] = torch.where(size > 0, r[:, i].detach().abs() / size, 0.0)
    return ratio.mean(dim=0)


@dataclass(frozen=True)
class Soteria(Defense):
    """Set the columns of a linear layer's gradient to zero whose inputs tell most of the image.

    Args:
        pruning_rate: share in [0, 1) of the layer's inputs; 0 changes nothing.
        layer: name of the layer; None for the last linear one.

    Raises:
        ValueError: the rate is out of its range, or the network has no such layer.
    """

    pruning_rate: float = 0.4
    layer: str | None = None

    def __post_init__(self) -> None:
        require_number("pruning_rate", self.pruning_rate, "in [0, 1)", lambda rate: 0 <= rate < 1)

    @property
    def is_random(self) -> bool:
        """Nothing is drawn."""
        return False

    def check(self, model: nn.Module, plan: LocalPlan) -> None:
        """Refuse a network without the layer."""
        self._name(model)

    def on_gradient(
        self, step: ClientStep, gradients: Gradients, generator: torch.Generator
    ) -> Gradients:
        """Set columns to zero."""
        assert step.model is not None
        name = self._name(step.model)
        weight = f"{name}.weight".lstrip(".")
        if weight not in gradients:
            return gradients
        ratio = telling_ratio(step.model, step.model.get_submodule(name), step.images)
        lost = torch.topk(ratio, int(self.pruning_rate * len(ratio))).indices
        changed = gradients[weight].clone()
        changed[:, lost] = 0
        return {**gradients, weight: changed}

    def facts(self) -> tuple[Fact, ...]:
        """Tell the layer."""
        return (LostColumns(self.layer),)

    def _name(self, model: nn.Module) -> str:
        names: list[str] = [
            name for name, part in model.named_modules() if isinstance(part, nn.Linear)
        ]
        if self.layer is None and names:
            return names[-1]
        if self.layer is None or self.layer not in names:
            wanted = "a linear layer" if self.layer is None else f"a linear layer {self.layer!r}"
            raise ValueError(f"soteria needs {wanted}, found {', '.join(names) or 'none'}")
        return self.layer
